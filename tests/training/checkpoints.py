"""Small trained states and their checkpoints, in this process."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from accelerate import Accelerator

from ldm_vae.config.run import Config
from ldm_vae.training.checkpoint import RunPlan, save_checkpoint
from ldm_vae.training.data_names import digest_names
from ldm_vae.training.run_folder import RunFolder
from ldm_vae.training.stages import next_stage
from ldm_vae.training.state import TrainingState, build_state
from ldm_vae.training.step import TrainingStep
from tests.tiny import tiny_config
from tests.training.steps import make_batch

CONFIG = tiny_config(
    data={"resolution": 64}, loss={"learn_logvar": True, "disc_start": 0}, train={"lr_scheduler": "cosine"}
)


def trained(config: Config = CONFIG, *, steps: int = 2, seed: int = 0) -> tuple[TrainingState, TrainingStep]:
    """A state after some updates, and what makes the next."""
    torch.manual_seed(seed)
    accelerator = Accelerator(cpu=True)
    state = build_state(config, accelerator=accelerator)
    step = TrainingStep(state, loss_config=config.loss, train_config=config.train, accelerator=accelerator)
    for number in range(steps):
        step(iter([make_batch(seed=number)]))
    return state, step


def plan_of(config: Config = CONFIG) -> RunPlan:
    """The plan of a run on two images."""
    stage = next_stage(config, checkpoint=None)
    return RunPlan(config=config, stage=stage, data=digest_names(["a.png", "b.png"]))


def save_at(state: TrainingState, run: Path, step: int, *, plan: RunPlan | None = None) -> Path:
    """Save the state as if it were that of a step."""
    return save_checkpoint(dataclasses.replace(state, step=step), RunFolder(run), plan or plan_of())


def names(run: Path) -> list[str]:
    """The last digits of a run's checkpoints."""
    return [path.name.removeprefix("checkpoint-00000") for path in RunFolder(run).checkpoints()]
