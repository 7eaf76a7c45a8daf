"""What fits into memory: measured on steps of synthetic images."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator

from ldm_vae.config.names import CheckpointingLevel
from ldm_vae.config.rules import FieldError, require
from ldm_vae.config.run import Config
from ldm_vae.images.transforms import Size
from ldm_vae.models.checkpointing import checkpoint_activations
from ldm_vae.system.float64 import float64_tensor
from ldm_vae.system.memory import release_freed_memory
from ldm_vae.training.step import TrainingStep

GIB = 2**30
LEVELS: tuple[CheckpointingLevel, ...] = ("none", "blocks", "full")
ADAM_BYTES = 8  # of each weight: two float32 moments, which the first update makes
FRAGMENTATION = 1.1  # bytes that an allocator holds for each byte it is asked for, with a reserve


class PeakMemory:
    """The most memory held since this object was made: of tensors on a CUDA device, of the whole process on Linux.

    Raises:
        ValueError: The system doesn't tell how much memory a process holds.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            require(sys.platform == "linux", f"memory can be measured on CUDA and on Linux, not on {sys.platform}")
            release_freed_memory()  # otherwise it would be used again without being counted
            Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark

    @property
    def current(self) -> int:
        """The bytes held now."""
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else _status("VmRSS")

    @property
    def peak(self) -> int:
        """The most bytes held."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else _status("VmHWM")


def _status(name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024


@contextlib.contextmanager
def explained_memory(step: TrainingStep, config: Config) -> Iterator[None]:
    """Turn a GPU's lack of memory into one line that says what didn't fit.

    Raises:
        FieldError: A micro-batch doesn't fit.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise FieldError(
            f"a micro-batch of {step.micro_batch_size} images of {max(config.data.sizes[0])} pixels doesn't fit into "
            f"the GPU's memory; take a smaller <train.micro_batch_size>, or a higher level of "
            f"<train.gradient_checkpointing>"
        ) from None


def fit_to_memory(step: TrainingStep, config: Config, *, accelerator: Accelerator) -> str:
    """Raise the level of activation checkpointing until a step fits into `train.memory_budget_gib`.

    A level's need is estimated, too high rather than too low, and is the same on every process. It is what is held
    once all gradients are there, plus what the optimizers will hold, plus what a step of one image takes beside them
    times the micro-batch.

    Returns:
        A line that says which level was chosen, and why.

    Raises:
        FieldError: No level fits.
    """
    state, train = step.state, config.train
    assert train.memory_budget_gib is not None
    estimates = []
    for level in LEVELS[LEVELS.index(train.gradient_checkpointing) :]:
        checkpoint_activations(state.family, level)
        needed = _estimate(step, resolution=config.data.sizes[0], accelerator=accelerator) / GIB
        estimates.append(f"{level} {needed:.2f} GiB")
        if needed <= train.memory_budget_gib:
            return (
                f"Of a memory budget of {train.memory_budget_gib:g} GiB a step takes about: {', '.join(estimates)}; "
                f"so gradient_checkpointing is {level}"
            )
    raise FieldError(
        f"<train.memory_budget_gib> is {train.memory_budget_gib:g}, but a micro-batch of {step.micro_batch_size} "
        f"takes about, by <train.gradient_checkpointing>: {', '.join(estimates)}; take a smaller "
        f"<train.micro_batch_size>"
    )


def _estimate(step: TrainingStep, *, resolution: Size, accelerator: Accelerator) -> float:
    """Return the bytes that a step takes, the most of all processes."""
    state = step.state
    image = step.grey_batch(1, resolution=resolution)
    step.largest_micro_batch(image)  # leaves the gradients, so that they are counted once
    memory = PeakMemory(accelerator.device)
    before = memory.current
    step.largest_micro_batch(image)
    optimized = ((parameter, network.optimizer) for network in state.networks for parameter in network.parameters)
    to_come = ADAM_BYTES * sum(parameter.numel() for parameter, optimizer in optimized if not optimizer.state)
    needed = before + to_come + FRAGMENTATION * (memory.peak - before) * step.micro_batch_size
    step.forget_gradients()
    measured = float64_tensor([needed], device=accelerator.device)
    return float(accelerator.gather(measured).max())
