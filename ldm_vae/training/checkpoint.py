"""Checkpoints that are whole or absent: written under another name, digested, synced, renamed."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm_vae.config.parsing import dump_config
from ldm_vae.config.run import Config
from ldm_vae.system.files import naming, sync_folder
from ldm_vae.system.tensors import write_tensors
from ldm_vae.training import checkpoint_files as files
from ldm_vae.training.checkpoint_files import (
    CheckpointError,
    CheckpointRecord,
    read_record,
    read_scalars,
    read_tensors,
    write_manifest,
)
from ldm_vae.training.data_names import DataNames
from ldm_vae.training.run_folder import RunFolder
from ldm_vae.training.stages import Stage
from ldm_vae.training.state import TrainedNetwork, TrainingState, named_trained_parameters


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What makes a run beside its state: the settings, and what followed from them when the run began."""

    config: Config
    """The settings of the run, with those of all its stages."""
    stage: Stage
    data: DataNames


# Writing


def save_checkpoint(state: TrainingState, run: RunFolder, plan: RunPlan) -> Path:
    """Write all of `state` into RUN/checkpoint-STEP; called by the main process alone.

    Raises:
        OSError: The checkpoint can't be written. Earlier ones are untouched.
    """
    checkpoint = run.checkpoint(state.step)
    unfinished = run.unfinished_checkpoint(state.step)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        with naming(unfinished):
            _write_files(unfinished, state, plan)
    except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    shutil.rmtree(checkpoint, ignore_errors=True)  # a damaged one of the same step, from before a resume
    unfinished.rename(checkpoint)
    sync_folder(run.path)
    return checkpoint


def _write_files(folder: Path, state: TrainingState, plan: RunPlan) -> None:
    for name, tensors in checkpoint_tensors(state).items():
        write_tensors(folder / name, {key: tensor.contiguous() for key, tensor in tensors.items()})
    (folder / files.RECORD).write_text(_record(state, plan).to_json())
    (folder / files.CONFIG).write_text(dump_config(plan.config), encoding="utf-8")
    (folder / files.ARCHITECTURE).write_text(state.autoencoder.to_json_string())
    write_manifest(folder)
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)


def checkpoint_tensors(state: TrainingState) -> dict[str, dict[str, Tensor]]:
    """Return the named tensors of each file of a checkpoint."""
    autoencoder = state.autoencoder.state_dict()
    tensors = {
        files.AUTOENCODER: autoencoder,
        files.OPTIMIZER: _optimizer_tensors(state.generator),
        files.SCALARS: {
            "lam": state.lam,
            "likelihood_logvar": state.trainable.likelihood_logvar.detach(),
            **state.meter.state(),
            **({} if state.objective.rate is None else {"rate_gates": state.objective.rate.gates}),
            **({} if state.objective.balance is None else {"alignment_ratio": state.objective.balance.ratio}),
            **({} if state.objective.lecam is None else {"lecam": state.objective.lecam.state}),
        },
    }
    if state.trainable.term_networks:
        tensors[files.TERMS] = state.trainable.term_networks.state_dict()
    if state.ema is not None:
        tensors[files.EMA] = {**autoencoder, **_ema_tensors(state)}
    if state.discriminator is not None:
        tensors[files.DISCRIMINATOR] = state.discriminator.module.state_dict()
        tensors[files.DISCRIMINATOR_OPTIMIZER] = _optimizer_tensors(state.discriminator)
    return tensors


def _ema_tensors(state: TrainingState) -> dict[str, Tensor]:
    assert state.ema is not None
    names = [name for name, parameter in state.autoencoder.named_parameters() if parameter.requires_grad]
    return dict(zip(names, state.ema.shadow_params, strict=True))


def _optimizer_tensors(network: TrainedNetwork[Any]) -> dict[str, Tensor]:
    """Return moments and step of each parameter, as `NAME:exp_avg`; nothing before the first update."""
    return {
        f"{name}:{key}": value
        for name, parameter in named_trained_parameters(network)
        for key, value in network.optimizer.state.get(parameter, {}).items()
    }


def _record(state: TrainingState, plan: RunPlan) -> CheckpointRecord:
    networks = {"generator": state.generator, "discriminator": state.discriminator}
    return CheckpointRecord(
        step=state.step,
        ema_step=state.ema.optimization_step if state.ema is not None else None,
        best=state.best,
        lr_scheduler_steps={name: net.lr_scheduler.last_epoch for name, net in networks.items() if net is not None},
        learning_rates=state.learning_rates,
        early_stages=plan.stage.early_stages,
        data=plan.data,
        stage=plan.stage.number,
        stage_start=plan.stage.first_step,
        disc_start=plan.stage.disc_start,
    )


# Reading


def load_checkpoint(state: TrainingState, checkpoint: Path) -> list[str]:
    """Put all that `save_checkpoint` wrote into the state, bit by bit; called by every process.

    Returns:
        A line for each harmless difference between what the checkpoint and the state hold.

    Raises:
        CheckpointError: The checkpoint is of another architecture, or of a run that trained other weights.
    """
    record = read_record(checkpoint)
    scalars = read_scalars(checkpoint)
    try:
        state.autoencoder.load_state_dict(read_tensors(checkpoint, files.AUTOENCODER))
        if (checkpoint / files.TERMS).is_file():
            state.trainable.term_networks.load_state_dict(read_tensors(checkpoint, files.TERMS))
        if state.discriminator is not None and (checkpoint / files.DISCRIMINATOR).is_file():
            state.discriminator.module.load_state_dict(read_tensors(checkpoint, files.DISCRIMINATOR))
            _load_optimizer(state.discriminator, read_tensors(checkpoint, files.DISCRIMINATOR_OPTIMIZER))
        _load_optimizer(state.generator, read_tensors(checkpoint, files.OPTIMIZER))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{checkpoint} is of another model than this config's: {reason}") from None
    state.trainable.likelihood_logvar.data.copy_(scalars["likelihood_logvar"])
    if state.ema is not None:
        _load_ema(state, checkpoint, ema_step=record.ema_step)
    state.lam.copy_(scalars["lam"])
    if state.objective.rate is not None and "rate_gates" in scalars:
        state.objective.rate.gates.copy_(scalars["rate_gates"])
    if state.objective.balance is not None and "alignment_ratio" in scalars:
        state.objective.balance.ratio.copy_(scalars["alignment_ratio"])
    if state.objective.lecam is not None and "lecam" in scalars:
        state.objective.lecam.state.copy_(scalars["lecam"])
    notes = [note for note in [state.meter.load(scalars)] if note]
    for name, steps in record.lr_scheduler_steps.items():
        network = getattr(state, name)
        if network is not None:
            _set_schedule(network, steps)
    state.step, state.first_step = record.step, record.stage_start
    state.best = record.best
    return notes


def begin_stage(state: TrainingState, checkpoint: Path) -> None:
    """Put what a stage goes on with into the state: what the one before would export, and what was trained beside it.

    That is the autoencoder with its averaged weights where there are any, the log-variance s, and the networks of
    terms and the discriminator where both stages have them. Everything else begins as in a new run.

    Raises:
        CheckpointError: The checkpoint is of another architecture.
    """
    record = read_record(checkpoint)
    weights = read_tensors(checkpoint, files.AUTOENCODER if record.ema_step is None else files.EMA)
    try:
        state.autoencoder.load_state_dict(weights)
        terms = read_tensors(checkpoint, files.TERMS) if (checkpoint / files.TERMS).is_file() else {}
        for name, network in state.trainable.term_networks.items():
            trained = {key.removeprefix(f"{name}."): tensor for key, tensor in terms.items() if _is_in(key, name)}
            if trained:
                network.load_state_dict(trained)
        if state.discriminator is not None and (checkpoint / files.DISCRIMINATOR).is_file():
            state.discriminator.module.load_state_dict(read_tensors(checkpoint, files.DISCRIMINATOR))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{checkpoint} is of another model than the stage after it: {reason}") from None
    state.trainable.likelihood_logvar.data.copy_(read_scalars(checkpoint)["likelihood_logvar"])
    if state.ema is not None:
        for name, shadow in _ema_tensors(state).items():
            shadow.copy_(weights[name])
    state.step = state.first_step = record.step


def _is_in(key: str, name: str) -> bool:
    return key.startswith(f"{name}.")


def _load_ema(state: TrainingState, checkpoint: Path, *, ema_step: int | None) -> None:
    """Load the averaged weights. Where the checkpoint has none, the average starts at the weights."""
    assert state.ema is not None
    weights = read_tensors(checkpoint, files.EMA if ema_step is not None else files.AUTOENCODER)
    for name, shadow in _ema_tensors(state).items():
        shadow.copy_(weights[name])
    state.ema.optimization_step = ema_step or 0


def _load_optimizer(network: TrainedNetwork[Any], tensors: dict[str, Tensor]) -> None:
    """Load moments and steps, in the memory format of the weights."""
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
        raise RuntimeError(f"its run trained other weights, or with another optimizer; see {unlike}")
    for key, value in tensors.items():
        name, _, kind = key.rpartition(":")
        parameter = parameters[name]
        like_weight = value.shape == parameter.shape
        if not like_weight and value.numel() != 1:
            raise RuntimeError(f"{key} has the shape {list(value.shape)}, its weight {list(parameter.shape)}")
        moment = torch.empty_like(parameter) if like_weight else value.to(parameter.device)
        network.optimizer.state[parameter][kind] = moment.copy_(value)


def _set_schedule(network: TrainedNetwork[Any], steps: int) -> None:
    """Put the schedule, which is a function of the number of updates, to `steps`."""
    scheduler = network.lr_scheduler
    scheduler.last_epoch = steps
    rates = [base * rule(steps) for base, rule in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    for group, rate in zip(network.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates  # get_last_lr() returns it; LambdaLR has no other way to go to a step without a warning
