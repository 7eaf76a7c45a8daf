"""Real launches: how many processes ran and how the batch was cut leaves no trace."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ldm_vae.config.commands.export import ExportOptions
from ldm_vae.encoding.encode import encode
from ldm_vae.exporting.export import export
from tests.audio.sounds import FRAMES, write_sounds
from tests.encodings import RESOLUTION, options, save_vae
from tests.training.changes import (
    BypassedReducer,
    Change,
    DifferentAfterStep,
    DifferentAtStart,
    LamOfEachRank,
    NanImages,
    NoiseOfEachRank,
    SmoothNetworks,
)
from tests.training.drive import run_together
from tests.training.jobs import Job
from tests.training.runs import largest_difference, last_checkpoint, metrics

pytestmark = pytest.mark.processes

STEPS = 8
BATCH_SIZE = 8
TOLERANCE = 1e-5
MICRO_BATCHES = {1: [2, 8], 2: [2]}
VARIANTS = ("decoder_only", "likelihood", "taught", "sounds", "flux2", "tiny", "dc", "target")
UNCUT = {"early_resolutions": [], "early_fractions": []}
FAULTS = {
    "lam_of_each_rank": LamOfEachRank(),
    "noise_of_each_rank": NoiseOfEachRank(),
    "bypassed_reducer": BypassedReducer(),
}


@dataclass(frozen=True)
class Launches:
    """Where two launches, of 1 and of 2 processes, left their runs."""

    folder: Path

    def run(self, name: str, *, num_processes: int) -> Path:
        return self.folder / f"{num_processes}-{name}"

    def told(self, name: str, *, num_processes: int = 2) -> list[dict[str, Any]]:
        """Outcome and digests of each rank."""
        run = self.run(name, num_processes=num_processes)
        return [json.loads(Path(f"{run}-outcome-{rank}.json").read_text()) for rank in range(num_processes)]


def variants(folder: Path, pictures: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Return what is otherwise in runs of these names: sections of their configs."""
    latents = folder / "latents"
    encode(options(save_vae(folder / "teacher", latent_channels=3), str(pictures), latents, flip=True))
    sounds = str(write_sounds(folder / "sounds", count=11, seconds=0.6))
    of_size = {"data": {"resolution": RESOLUTION, **UNCUT}}
    of_sounds = {"train": sounds, "validation": sounds, "mel_frames": FRAMES, "flip": False}
    return {
        "decoder_only": {"model": {"decoder_only": True}},
        "likelihood": {"loss": {"likelihood": "logistic", "learn_logvar": False, "logvar_init": -2.0, "kl_weight": 1}},
        "taught": {
            "model": {"teacher": str(latents), "teach_encoder": True, "latent_channels": 3},
            "data": {"resolution": RESOLUTION, "crop": "center", **UNCUT},
        },
        "sounds": {"model": {"in_channels": 1}, "data": of_sounds | UNCUT},
        "flux2": {"model": {"family": "flux2", "latent_channels": 3, "decoder_block_out_channels": [4, 8]}, **of_size},
        "tiny": {"model": {"family": "tiny", "latent_channels": 4}, **of_size},
        "dc": {"model": {"family": "dc", "attention_levels": [1], "latent_channels": 4}, **of_size},
        "target": {
            "model": {"in_channels": 4, "out_channels": 3},
            "data": {"target_channels": [3, 0, 2], "resolution": RESOLUTION, **UNCUT},
        },
    }


def settings(pictures: Path, *, adaptive_weight: str, **train: Any) -> dict[str, Any]:
    """Return the settings that all runs share, where `train` says nothing else."""
    return {
        "data": {
            "train": str(pictures), "validation": str(pictures),  # 11: a tail of 1 for 2 processes
            "early_resolutions": [16], "early_fractions": [0.4],
        },
        "loss": {
            "perceptual": "efficientnet_lite0", "kl_weight": 1e-3, "learn_logvar": True,
            "adaptive_weight": adaptive_weight,
        },
        "train": {
            "batch_size": BATCH_SIZE, "max_train_steps": STEPS, "disc_learning_rate": 4e-3, "adam_epsilon": 1e-4,
            "max_grad_norm": 0.5, "lr_scheduler": "cosine", "lr_warmup_steps": 2, "weight_decay": 0.01,
            "validation_steps": 4, "checkpointing_steps": 4, **train,
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Launches:
    launches = Launches(tmp_path_factory.mktemp("launches"))
    varied = variants(tmp_path_factory.mktemp("variants"), pictures)

    def job(
        name: str,
        *changes: Change,
        num_processes: int = 2,
        smooth: bool = True,
        adaptive_weight: str = "lagged",
        **train: Any,
    ) -> Job:
        config = settings(pictures, adaptive_weight=adaptive_weight, **train)
        config["output_dir"] = str(launches.run(name, num_processes=num_processes))
        if smooth:
            config["loss"]["reconstruction"] = "l2"
        for section, fields in varied.get(name, {}).items():
            config[section] = config.get(section, {}) | fields
        return Job(config=config, changes=(*([SmoothNetworks()] if smooth else []), *changes))

    jobs: dict[int, list[Job]] = {1: [], 2: []}
    for num_processes, micro_batches in MICRO_BATCHES.items():
        for size in micro_batches:
            jobs[num_processes].append(job(f"full-{size}", num_processes=num_processes, micro_batch_size=size))
        jobs[num_processes] += [
            *(job(name, num_processes=num_processes, micro_batch_size=2 * num_processes) for name in varied),
            job("published", num_processes=num_processes, smooth=False, learning_rate=1e-4, disc_learning_rate=1e-4),
        ]
    jobs[2] += [job(name, fault, micro_batch_size=2) for name, fault in FAULTS.items()]
    for num_processes in (1, 2):
        jobs[num_processes].append(job("same_step", num_processes=num_processes, adaptive_weight="same_step"))
    jobs[2] += [
        job("differing_at_start", DifferentAtStart(rank=1)),
        job("differing_after_step", DifferentAfterStep(step=6)),
        job("nan_images", NanImages(first=3, last=4)),
        job("row_of_nan", NanImages(first=5, last=99), max_nonfinite_steps=3, log_steps=1),
    ]
    run_together(launches.folder, launched=jobs)
    return launches


def lines_with(name: str, run: Path) -> list[dict[str, Any]]:
    return [line for line in metrics(run) if name in line]


CUTS = [(n, f"full-{size}") for n, sizes in MICRO_BATCHES.items() for size in sizes if (n, size) != (1, BATCH_SIZE)]


@pytest.mark.parametrize(("num_processes", "name"), [*CUTS, *((2, name) for name in VARIANTS)])
def test_weights_are_those_of_one_process_and_one_batch(launches: Launches, num_processes: int, name: str) -> None:
    """Also the averaged weights, the discriminator, the learnt log-variance and lam."""
    alone = launches.run(name if name in VARIANTS else f"full-{BATCH_SIZE}", num_processes=1)
    run = launches.run(name, num_processes=num_processes)
    assert last_checkpoint(run).name == last_checkpoint(alone).name == f"checkpoint-{STEPS:06d}"
    assert largest_difference(run, alone) < TOLERANCE


def test_published_objective_does_not_depend_on_them_either(launches: Launches) -> None:
    """L1, ReLU and hinge: the kinks take a rounding error to where it shows, in a few weights, after a few steps."""
    one, two = (launches.run("published", num_processes=n) for n in (1, 2))
    assert largest_difference(one, two, but_for=["state"]) < 10 * TOLERANCE


def test_lam_of_the_same_step_is_the_global_batchs(launches: Launches) -> None:
    one, two = (launches.run("same_step", num_processes=n) for n in (1, 2))
    assert all(line["lam_clamped"] == 0 for line in lines_with("lam", one))
    assert largest_difference(one, two) < TOLERANCE


@pytest.mark.parametrize("fault", FAULTS)
def test_published_faults_fail_that_comparison(launches: Launches, fault: str) -> None:
    assert last_checkpoint(launches.run(fault, num_processes=2)).name == f"checkpoint-{STEPS:06d}"
    faulty, right = launches.run(fault, num_processes=2), launches.run(f"full-{BATCH_SIZE}", num_processes=1)
    difference = largest_difference(faulty, right, but_for=["state"])  # in the weights themselves
    assert difference > 5 * TOLERANCE


@pytest.mark.parametrize("name", [*(f"full-{size}" for size in MICRO_BATCHES[2]), *VARIANTS])
def test_ranks_are_bit_equal_after_every_step(launches: Launches, name: str) -> None:
    zero, one = (told["digests"] for told in launches.told(name))
    assert zero == one
    assert len(set(zero)) == STEPS


def test_bypassed_reducer_leaves_different_ranks(launches: Launches) -> None:
    zero, one = (told["digests"] for told in launches.told("bypassed_reducer"))
    assert all(a != b for a, b in zip(zero[1:], one[1:], strict=True))  # the warm-up's first rate is 0


def test_validation_and_latent_statistics_are_those_of_one_process(launches: Launches) -> None:
    alone = [
        line for line in metrics(launches.run(f"full-{BATCH_SIZE}", num_processes=1)) if "validation/psnr" in line
    ]
    shared = [line for line in metrics(launches.run("full-2", num_processes=2)) if "validation/psnr" in line]
    assert [line["step"] for line in alone] == [4, 8]
    for one, two in zip(alone, shared, strict=True):
        assert one["validation/num_images"] == two["validation/num_images"] == 11
        assert one.keys() == two.keys()
        for name, value in one.items():
            assert two[name] == pytest.approx(value, rel=1e-4), name


def test_exported_weights_and_scaling_are_those_of_one_process(launches: Launches, tmp_path: Path) -> None:
    configs, tensors = [], []
    for num_processes, name in ((1, f"full-{BATCH_SIZE}"), (2, "full-2")):
        output = tmp_path / str(num_processes)
        run = launches.run(name, num_processes=num_processes)
        export(ExportOptions(run=str(run), output=str(output), shift=True, num_workers=0))
        configs.append(json.loads((output / "config.json").read_text()))
        tensors.append(load_file(output / "diffusion_pytorch_model.safetensors"))
    for name in ("scaling_factor", "shift_factor"):
        assert configs[0][name] == pytest.approx(configs[1][name], rel=1e-5, abs=1e-6)
    for name, tensor in tensors[0].items():
        torch.testing.assert_close(tensors[1][name], tensor, rtol=0, atol=TOLERANCE)


def test_training_figures_are_those_of_one_process(launches: Launches) -> None:
    alone = lines_with("rec", launches.run(f"full-{BATCH_SIZE}", num_processes=1))
    shared = lines_with("rec", launches.run("full-2", num_processes=2))
    assert alone[-1]["grad_norm"] > 0.5  # clipping was at work,
    assert 0 < alone[-1]["lam"] < 1  # and the adaptive weight, below its clamp
    assert alone[-1]["lam_clamped"] == 0
    for one, two in zip(alone, shared, strict=True):
        for name, value in one.items():
            assert two[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name


@pytest.mark.parametrize(("name", "step"), [("differing_at_start", 0), ("differing_after_step", 8)])
def test_rank_with_other_weights_is_named(launches: Launches, name: str, step: int) -> None:
    zero, one = (told["outcome"] for told in launches.told(name))
    assert zero.startswith(f"RanksDifferError: at step {step} the weights of rank 1 (on ")
    assert one == "SystemExit: 1"  # told once
    checkpoints = [path.name for path in launches.run(name, num_processes=2).glob("checkpoint-*")]
    assert checkpoints == (["checkpoint-000004"] if step else [])


def test_one_ranks_nan_skips_the_step_on_all(launches: Launches) -> None:
    zero, one = (told["digests"] for told in launches.told("nan_images"))
    assert zero == one
    lines = {line["step"]: line for line in lines_with("skipped_steps", launches.run("nan_images", num_processes=2))}
    for term in ("rec", "perceptual", "kl", "g", "d", "gradient"):
        assert lines[4][f"nonfinite/{term}"] == 2, term  # steps 3 and 4
    assert lines[4]["skipped_steps"] == 2
    assert lines[2]["skipped_steps"] == lines[6]["skipped_steps"] == 0


def test_row_of_nan_stops_all_and_keeps_the_checkpoint_before(launches: Launches) -> None:
    zero, one = (told["outcome"] for told in launches.told("row_of_nan"))
    assert zero.startswith("NonFiniteError: 3 updates in a row, up to step 7, were not finite")
    assert "perceptual" in zero
    assert one == "SystemExit: 1"
    assert last_checkpoint(launches.run("row_of_nan", num_processes=2)).name == "checkpoint-000004"
