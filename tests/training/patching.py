"""Patches of the training loop in this process, until `patches` is closed."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from ldm_vae.images.training import TrainingBatch
from ldm_vae.training import checkpoint, loop, opening
from ldm_vae.training.state import TrainingState
from ldm_vae.training.step import TrainingStep

patches = contextlib.ExitStack()
"""Closing it undoes the changes of this process."""


def current_rank() -> int:
    return int(os.environ.get("RANK", "0"))


def patch(owner: Any, name: str, replacement: Any) -> None:
    patches.enter_context(mock.patch.object(owner, name, replacement))


def leave_ranks_uncompared() -> None:
    for module in (opening, loop):
        patch(module, "check_ranks_agree", lambda *args, **kwargs: None)


def change_state(change: Callable[[TrainingState], None]) -> None:
    build = opening.build_state

    @functools.wraps(build)
    def built(*args: Any, **kwargs: Any) -> TrainingState:
        state = build(*args, **kwargs)
        change(state)
        return state

    patch(opening, "build_state", built)


def change_batches(change: Callable[[TrainingBatch], None]) -> None:
    open_batches = opening.open_batches

    def changed(*args: Any, **kwargs: Any) -> Iterator[TrainingBatch]:
        for batch in open_batches(*args, **kwargs):
            change(batch)
            yield batch

    patch(opening, "open_batches", changed)


def before_step(number: int, work: Callable[[TrainingStep], None]) -> None:
    call = TrainingStep.__call__

    def called(self: TrainingStep, batches: Iterator[TrainingBatch]) -> None:
        if self.state.step + 1 == number:
            work(self)
        call(self, batches)

    patch(TrainingStep, "__call__", called)


def after_step(number: int | None, work: Callable[[TrainingStep], None]) -> None:
    call = TrainingStep.__call__

    def called(self: TrainingStep, batches: Iterator[TrainingBatch]) -> None:
        call(self, batches)
        if number in (None, self.state.step):
            work(self)

    patch(TrainingStep, "__call__", called)


def count_saves() -> list[int]:
    saves = [0]
    save = checkpoint.save_checkpoint

    def counted(*args: Any) -> Path:
        saves[0] += 1
        return save(*args)

    patch(loop, "save_checkpoint", counted)
    return saves


def flip_a_bit(state: TrainingState) -> None:
    """Change the lowest bit of one weight."""
    bias = state.autoencoder.decoder.conv_out.bias
    bias.data[0] = torch.nextafter(bias.data[0], torch.tensor(1e9))
