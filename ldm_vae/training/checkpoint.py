"""Checkpoints that are whole or absent: written under another name, digested, synced, renamed."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from ldm_vae.config.parsing import load_config
from ldm_vae.config.rules import require
from ldm_vae.config.run import Config
from ldm_vae.models.families import family_from_config
from ldm_vae.models.families.family import Family
from ldm_vae.system.files import sha256_file, sync_folder
from ldm_vae.system.tensors import write_tensors
from ldm_vae.training.state import BestValidation, TrainedNetwork, TrainingState, named_trained_parameters

CHECKPOINT = "checkpoint-"
MANIFEST = "manifest.json"
_NAME = re.compile(CHECKPOINT + r"(\d{6,})")


class CheckpointError(ValueError):
    """A checkpoint that is not whole, named with the file that is damaged."""


def checkpoint_name(step: int) -> str:
    """`checkpoint-000500`."""
    return f"{CHECKPOINT}{step:06d}"


def list_checkpoints(run: Path) -> list[Path]:
    """Checkpoint folders of a run, oldest first; unfinished ones have another name."""
    found = [path for path in run.glob(f"{CHECKPOINT}*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=checkpoint_step)


def checkpoint_step(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1])


# Writing


def save_checkpoint(state: TrainingState, run: Path) -> Path:
    """Write all of `state` into RUN/checkpoint-STEP; called by the main process alone.

    Raises:
        OSError: where it can't be written; what was saved before is untouched.
    """
    checkpoint = run / checkpoint_name(state.step)
    unfinished = run / f".{checkpoint.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        for name, tensors in _tensors(state).items():
            write_tensors(unfinished / name, {key: tensor.contiguous() for key, tensor in tensors.items()})
        (unfinished / "state.json").write_text(json.dumps(_scalars(state), indent=1))
        (unfinished / "autoencoder_config.json").write_text(state.autoencoder.to_json_string())
        manifest = {path.name: _digest(path) for path in sorted(unfinished.iterdir())}
        (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in unfinished.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(unfinished)
    except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    shutil.rmtree(checkpoint, ignore_errors=True)  # a damaged one of the same step, from before a resume
    unfinished.rename(checkpoint)
    sync_folder(run)
    return checkpoint


def remove_old_checkpoints(run: Path, *, step: int, limit: int | None, best: BestValidation | None) -> None:
    """Keep the newest `limit` checkpoints and the best one; called after that of `step` was written.

    The one just written is whole and stays, whatever else there is: any of a later step doesn't count.
    """
    keep = checkpoint_name(best.step) if best is not None else None
    checkpoints = [checkpoint for checkpoint in list_checkpoints(run) if checkpoint_step(checkpoint) <= step]
    for checkpoint in checkpoints[: -limit if limit else 0]:
        if checkpoint.name != keep:
            remove_checkpoint(checkpoint)


def remove_checkpoint(checkpoint: Path) -> None:
    """Remove it under another name: a removal that is interrupted leaves no half of a checkpoint under its own."""
    removed = checkpoint.with_name(f".{checkpoint.name}.removed")
    shutil.rmtree(removed, ignore_errors=True)
    shutil.rmtree(checkpoint.rename(removed))


def _tensors(state: TrainingState) -> dict[str, dict[str, Tensor]]:
    """File name to named tensors."""
    autoencoder = state.autoencoder.state_dict()
    files = {
        "autoencoder.safetensors": autoencoder,
        "optimizer.safetensors": _optimizer_tensors(state.generator),
        "state.safetensors": {
            "lam": state.lam,
            "likelihood_logvar": state.trainable.likelihood_logvar.detach(),
            **state.meter.state(),
        },
    }
    if state.trainable.term_networks:
        files["terms.safetensors"] = state.trainable.term_networks.state_dict()
    if state.ema is not None:
        files["ema.safetensors"] = {**autoencoder, **_ema_tensors(state)}
    if state.discriminator is not None:
        files["discriminator.safetensors"] = state.discriminator.module.state_dict()
        files["discriminator_optimizer.safetensors"] = _optimizer_tensors(state.discriminator)
    return files


def _ema_tensors(state: TrainingState) -> dict[str, Tensor]:
    assert state.ema is not None
    names = [name for name, parameter in state.autoencoder.named_parameters() if parameter.requires_grad]
    return dict(zip(names, state.ema.shadow_params, strict=True))


def _optimizer_tensors(network: TrainedNetwork[Any]) -> dict[str, Tensor]:
    """Moments and step of each parameter, as `NAME:exp_avg`; none before the first update."""
    return {
        f"{name}:{key}": value
        for name, parameter in named_trained_parameters(network)
        for key, value in network.optimizer.state.get(parameter, {}).items()
    }


def _scalars(state: TrainingState) -> dict[str, Any]:
    networks = {"generator": state.generator, "discriminator": state.discriminator}
    return {
        "step": state.step,
        "ema_step": state.ema.optimization_step if state.ema is not None else None,
        "best": dataclasses.asdict(state.best) if state.best is not None else None,
        "lr_scheduler_steps": {name: net.lr_scheduler.last_epoch for name, net in networks.items() if net is not None},
    }


# Reading


def check_whole(checkpoint: Path) -> None:
    """Raise `CheckpointError`, naming the file, unless every file has the size and digest that were written."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
    except (OSError, ValueError):
        raise CheckpointError(f"{checkpoint} is damaged: {MANIFEST} can't be read") from None
    for name, expected in manifest.items():
        path = checkpoint / name
        if not path.is_file():
            raise CheckpointError(f"{checkpoint} is damaged: {name} is missing")
        if path.stat().st_size != expected["size"] or _digest(path) != expected:
            raise CheckpointError(f"{checkpoint} is damaged: {name} is not what was written")


def latest_checkpoint(run: Path, *, report: Callable[[str], None] = lambda line: None) -> Path | None:
    """The newest whole checkpoint; a line is reported for each newer one that is damaged.

    Raises:
        CheckpointError: where there are some, all of them damaged.
    """
    checkpoints = list_checkpoints(run)
    for checkpoint in reversed(checkpoints):
        try:
            check_whole(checkpoint)
        except CheckpointError as error:
            report(str(error))
        else:
            return checkpoint
    if checkpoints:
        raise CheckpointError(f"{run}: none of its {len(checkpoints)} checkpoints is whole")
    return None


def find_checkpoint(run: Path, name: str) -> Path:
    """The checkpoint called `latest` (the newest whole one), `best` (by validation) or by its name.

    Raises:
        CheckpointError: where it is missing or damaged.
    """
    if name in ("latest", "best"):
        latest = latest_checkpoint(run)
        if latest is None:
            raise CheckpointError(f"{run} holds no checkpoint")
        if name == "latest":
            return latest
        best = json.loads((latest / "state.json").read_text())["best"]
        if best is None:
            raise CheckpointError(f"{run} was not validated, so it has no best checkpoint; take 'latest'")
        name = checkpoint_name(best["step"])
    if not (_NAME.fullmatch(name) and (run / name).is_dir()):
        known = ", ".join(path.name for path in list_checkpoints(run)) or "none"
        raise CheckpointError(f"{run} holds no checkpoint '{name}'; it holds {known}")
    check_whole(run / name)
    return run / name


def load_checkpoint(state: TrainingState, checkpoint: Path) -> list[str]:
    """Take up all that `save_checkpoint` wrote, bit by bit; called by every process.

    Returns:
        A line for each thing that the checkpoint has otherwise than the state, and that doesn't matter.

    Raises:
        CheckpointError: where the checkpoint is of another architecture, or of a run that trained other weights.
    """
    scalars = json.loads((checkpoint / "state.json").read_text())
    extra = load_file(checkpoint / "state.safetensors")
    try:
        state.autoencoder.load_state_dict(load_file(checkpoint / "autoencoder.safetensors"))
        if (checkpoint / "terms.safetensors").is_file():
            state.trainable.term_networks.load_state_dict(load_file(checkpoint / "terms.safetensors"))
        if state.discriminator is not None and (checkpoint / "discriminator.safetensors").is_file():
            state.discriminator.module.load_state_dict(load_file(checkpoint / "discriminator.safetensors"))
            _load_optimizer(state.discriminator, load_file(checkpoint / "discriminator_optimizer.safetensors"))
        _load_optimizer(state.generator, load_file(checkpoint / "optimizer.safetensors"))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{checkpoint} is of another model than this config's: {reason}") from None
    state.trainable.likelihood_logvar.data.copy_(extra["likelihood_logvar"])
    if state.ema is not None:
        _load_ema(state, checkpoint, ema_step=scalars["ema_step"])
    state.lam.copy_(extra["lam"])
    notes = [note for note in [state.meter.load(extra)] if note]
    for name, steps in scalars["lr_scheduler_steps"].items():
        network = getattr(state, name)
        if network is not None:
            _set_schedule(network, steps)
    state.step = scalars["step"]
    state.best = BestValidation(**scalars["best"]) if scalars["best"] is not None else None
    return notes


def _load_ema(state: TrainingState, checkpoint: Path, *, ema_step: int | None) -> None:
    assert state.ema is not None
    source = checkpoint / ("ema.safetensors" if ema_step is not None else "autoencoder.safetensors")
    weights = load_file(source)
    for name, shadow in _ema_tensors(state).items():
        shadow.copy_(weights[name])
    state.ema.optimization_step = ema_step or 0


def _load_optimizer(network: TrainedNetwork[Any], tensors: dict[str, Tensor]) -> None:
    """Take up moments and steps, in the memory format of the weights."""
    parameters = dict(named_trained_parameters(network))
    names = {parameter: name for name, parameter in parameters.items()}
    expected = {
        f"{names[parameter]}:{kind}"
        for group in network.optimizer.param_groups
        for parameter in group["params"]
        for kind in (("momentum_buffer",) if group.get("muon") else ("step", "exp_avg", "exp_avg_sq"))
    }
    if tensors and tensors.keys() != expected:
        unlike = min(tensors.keys() ^ expected)
        raise RuntimeError(f"it trained other weights, or with another optimizer; see {unlike}")
    for key, value in tensors.items():
        name, _, kind = key.rpartition(":")
        parameter = parameters[name]
        held = torch.empty_like(parameter) if value.shape == parameter.shape else value.to(parameter.device)
        network.optimizer.state[parameter][kind] = held.copy_(value)


def _set_schedule(network: TrainedNetwork[Any], steps: int) -> None:
    """Put the schedule, a function of the number of updates, to `steps`."""
    scheduler = network.lr_scheduler
    scheduler.last_epoch = steps
    rates = [base * rule(steps) for base, rule in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    for group, rate in zip(network.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


@dataclass(frozen=True, kw_only=True)
class RunAutoencoder:
    """A run's autoencoder, for the products."""

    family: Family  # float32, eval
    config: Config
    step: int
    checkpoint: Path
    best: BestValidation | None


def load_run_autoencoder(run: Path, *, checkpoint: str, weights: Literal["ema", "raw"]) -> RunAutoencoder:
    """Load the autoencoder of a run's checkpoint (`latest`, `best` or a name).

    Raises:
        ValueError: where there is no run, no whole checkpoint, or no EMA in it.
    """
    require((run / "config.yaml").is_file(), f"--run: {run} is no run: it has no config.yaml")
    folder = find_checkpoint(run, checkpoint)
    config = load_config(run / "config.yaml")
    state = json.loads((folder / "state.json").read_text())
    name = "autoencoder.safetensors" if weights == "raw" or config.train.ema_decay == 0 else "ema.safetensors"
    family = family_from_config(json.loads((folder / "autoencoder_config.json").read_text()))
    family.model.load_state_dict(load_file(folder / name))
    return RunAutoencoder(
        family=family.eval(),
        config=config,
        step=state["step"],
        checkpoint=folder,
        best=BestValidation(**state["best"]) if state["best"] else None,
    )


def _digest(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": sha256_file(path)}
