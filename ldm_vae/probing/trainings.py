"""All trainings of a probe: each autoencoder from each seed, its samples judged; what is done is kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ldm_vae.config.commands.probe import ProbeOptions
from ldm_vae.evaluation.features import SetFeatures
from ldm_vae.probing.folder import ProbeFolder
from ldm_vae.probing.latents import EncodedMoments, FolderMoments, normalised
from ldm_vae.probing.prepare import Prepared, Subject
from ldm_vae.probing.protocol import Budget, common_grid, probe_protocol
from ldm_vae.probing.results import Training
from ldm_vae.probing.samples import distances, draw_samples
from ldm_vae.probing.train import Run, affordable_steps, remove, train
from ldm_vae.system.files import whole_or_absent
from ldm_vae.system.tensors import write_tensors

_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Trainings:
    """What all trainings share."""

    subjects: Sequence[Subject]
    budget: Budget
    options: ProbeOptions
    prepared: Prepared
    features: Sequence[SetFeatures]
    folder: ProbeFolder
    processes: PartialState
    bf16: bool
    """Whether autoencoders run in bf16."""
    train_bf16: bool
    """Whether the diffusion model does."""

    def run(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Train all; return the protocol, and of each autoencoder `reconstruction` and `trainings` of `Probed`."""
        resolution = self.budget.resolution
        grid = common_grid(
            {subject.name: subject.shape(resolution)[1] for subject in self.subjects}, largest=self.budget.grid
        )
        runs = [self._prepare_run(number, grid=grid) for number in range(len(self.subjects))]
        budget, seconds = self.budget, self.options.seconds
        if seconds is not None:
            budget = replace(budget, steps=self.folder.once("steps", lambda: self._affordable(runs[0], seconds)))
            runs = [replace(run, budget=budget) for run in runs]
        protocol = probe_protocol(
            budget,
            grid=grid,
            normalize=self.options.normalize,
            bf16=self.bf16,
            train_bf16=self.train_bf16,
            features=[f"{each.name}: {each.protocol}" for each in self.features],
            data=self.prepared.data,
        )
        return protocol, [self._results(number, run) for number, run in enumerate(runs)]

    def _affordable(self, run: Run, seconds: float) -> int:
        return affordable_steps(run, seconds=seconds, processes=self.processes)

    def _prepare_run(self, number: int, *, grid: int) -> Run:
        subject = self.subjects[number]
        moments: EncodedMoments | FolderMoments
        if subject.folder is None:
            moments = EncodedMoments.open(self.folder.work, name=str(number), rows=self.prepared.rows)
        else:
            moments = FolderMoments(subject.folder)
            shape = subject.shape(self.budget.resolution)
            moments.check(encoder=subject.encoder, shape=shape, folder=subject.folder)
        return Run(
            latents=normalised(moments, subject.autoencoder.family, by=self.options.normalize),
            budget=self.budget,
            grid=grid,
            seed=0,
            bf16=self.train_bf16,
            device=self.processes.device,
        )

    def _results(self, number: int, run: Run) -> dict[str, Any]:
        reconstruction: dict[str, float] = {}
        for network in self.features:
            real, found = self.prepared.real(network), self.prepared.reconstructed(network, number)
            reconstruction |= distances(real, found, name=network.name)
        trainings = [self._training(number, replace(run, seed=seed)) for seed in range(run.budget.num_seeds)]
        return {"reconstruction": reconstruction, "trainings": trainings}

    def _training(self, number: int, run: Run) -> Training:
        checkpoint = self.folder.checkpoint(number, run.seed)
        judged = self.folder.once(f"result-{number}-{run.seed}", lambda: self._judge(number, run, checkpoint))
        if self.processes.is_main_process:
            remove(checkpoint)
        return Training(**judged)

    def _judge(self, number: int, run: Run, checkpoint: Path) -> dict[str, Any]:
        start, subject = time.perf_counter(), self.subjects[number]
        title = f"{subject.name}, seed {run.seed}"
        network = train(run, checkpoint=checkpoint, processes=self.processes, title=title)
        found, pictures = draw_samples(
            network,
            subject.autoencoder,
            run,
            features=self.features,
            batch_size=self.options.batch_size,
            keep=_SHOWN,
            title=f"samples of {title}",
        )
        if self.processes.is_main_process and run.seed == 0:
            with whole_or_absent(pictures_file(self.folder.work, number)) as temporary:
                write_tensors(temporary, {"pictures": pictures})
        scores: dict[str, float] = {}
        for network_of_features in self.features:
            name = network_of_features.name
            scores |= distances(self.prepared.real(network_of_features), found[name], name=name)
        return {"seed": run.seed, "seconds": time.perf_counter() - start, "scores": scores}


def pictures_file(work: Path, number: int) -> Path:
    """Return where an autoencoder's samples are kept to be shown."""
    return work / f"pictures-{number}.safetensors"
