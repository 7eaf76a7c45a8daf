"""One training of the probe: a function of the latents, the budget and a seed, on any number of processes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ldm_vae.config.rules import require
from ldm_vae.models.precision import autocast
from ldm_vae.probing.flow import draw_times, flow_loss, step_generator, time_shift
from ldm_vae.probing.latents import TrainingLatents
from ldm_vae.probing.network import LatentTransformer
from ldm_vae.probing.protocol import BETAS, EMA_DECAY, MAX_NORM, WARMUP, Budget
from ldm_vae.system.files import whole_or_absent
from ldm_vae.system.progress import progress
from ldm_vae.system.randomness import sample_index
from ldm_vae.system.tensors import write_tensors

SAVE_SECONDS = 60.0
"""Time between two checkpoints."""
_CALIBRATION_STEPS = 12
_STEP = "step"


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a training is of."""

    latents: TrainingLatents
    budget: Budget
    grid: int
    seed: int
    bf16: bool
    device: torch.device

    def network(self) -> LatentTransformer:
        """Return the network with its first weights, which the seed decides, on the CPU."""
        c, h, _ = self.latents.moments.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return LatentTransformer(
                channels=c,
                side=h,
                patch=h // self.grid,
                width=self.budget.width,
                depth=self.budget.depth,
                heads=self.budget.heads,
            )

    @property
    def shift(self) -> float:
        """By which the odds of times are shifted."""
        return time_shift(self.latents.dimension)


class _Training:
    """Network, average and optimizer, at a step."""

    def __init__(self, run: Run, processes: PartialState) -> None:
        self.run, self.processes = run, processes
        self.network = run.network().to(run.device)
        self.average = [weight.detach().clone() for weight in self.network.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=run.budget.learning_rate, betas=BETAS, weight_decay=0.0
        )
        alone = processes.num_processes == 1
        self.trained: nn.Module = self.network if alone else DistributedDataParallel(self.network)
        self.step = 0

    def update(self) -> Tensor:
        """Make a step on this process's part of the batch; return its loss."""
        run, size = self.run, self.run.budget.batch_size
        moments = run.latents.moments
        rows = [
            sample_index(k, num_samples=len(moments), seed=run.seed)
            for k in range(self.step * size, (self.step + 1) * size)
        ]
        generator = step_generator(self.step, seed=run.seed, device=run.device)
        shape = (size, *moments.shape)
        drawn = [torch.randn(shape, generator=generator, device=run.device) for _ in range(2)]
        normal = torch.randn(size, generator=generator, device=run.device)
        part = slice(self.processes.process_index, size, self.processes.num_processes)
        latents = run.latents.batch(rows[part], noise=drawn[0][part])
        warm = max(1, int(WARMUP * run.budget.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = run.budget.learning_rate * min(1.0, (self.step + 1) / warm)
        with autocast(run.device, enabled=run.bf16):
            loss = flow_loss(self.trained, latents, drawn[1][part], draw_times(normal[part], shift=run.shift))
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), MAX_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [weight.detach() for weight in self.network.parameters()], 1 - decay)
        return loss.detach()

    def save(self, path: Path) -> None:
        """Write all that the next step depends on."""
        tensors = {f"network/{i}": weight.detach() for i, weight in enumerate(self.network.parameters())}
        tensors |= {f"average/{i}": weight for i, weight in enumerate(self.average)}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{i}/{name}": value for name, value in state.items()}
        tensors[_STEP] = torch.tensor(self.step)
        with whole_or_absent(path) as temporary:
            write_tensors(temporary, {name: tensor.contiguous() for name, tensor in tensors.items()})

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote."""
        tensors = load_file(path)
        for i, (weight, average) in enumerate(zip(self.network.parameters(), self.average, strict=True)):
            weight.data.copy_(tensors[f"network/{i}"])
            average.copy_(tensors[f"average/{i}"])
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer/"):
                _, number, key = name.split("/")
                states.setdefault(int(number), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": states})
        self.step = int(tensors[_STEP])

    def averaged(self) -> LatentTransformer:
        """Return the network with its average weights, in eval mode."""
        for weight, average in zip(self.network.parameters(), self.average, strict=True):
            weight.data.copy_(average)
        return self.network.eval()


def train(run: Run, *, checkpoint: Path, processes: PartialState, title: str) -> LatentTransformer:
    """Train, from the checkpoint if there is one, which goes on being written; return the average of the weights.

    Raises:
        ValueError: The processes don't divide the batch.
    """
    size, count = run.budget.batch_size, processes.num_processes
    require(
        size % count == 0, f"{count} processes can't share batches of {size} latents; take a number that divides it"
    )
    with _deterministic():
        training = _Training(run, processes)
        if checkpoint.is_file():
            training.load(checkpoint)
        processes.wait_for_everyone()  # before the main process writes it anew
        bar = progress(
            total=run.budget.steps, initial=training.step, what=title, unit="step", show=processes.is_main_process
        )
        saved = time.monotonic()
        while training.step < run.budget.steps:
            training.update()
            bar.update()
            if processes.is_main_process and time.monotonic() - saved >= SAVE_SECONDS:
                training.save(checkpoint)
                saved = time.monotonic()
        bar.close()
        return training.averaged()


def affordable_steps(run: Run, *, seconds: float, processes: PartialState) -> int:
    """Return how many steps a training makes in so many seconds, as measured on a few."""
    with _deterministic():
        training = _Training(run, processes)
        times = []
        for _ in range(_CALIBRATION_STEPS):
            start = time.perf_counter()
            training.update().item()
            times.append(time.perf_counter() - start)
    each = torch.tensor(sorted(times)[len(times) // 2], dtype=torch.float32, device=run.device)
    if processes.num_processes > 1:
        torch.distributed.broadcast(each, src=0)
    return max(1, int(seconds / each.item()))


@contextmanager
def _deterministic() -> Iterator[None]:
    """Let the same training give the same weights, on a GPU too."""
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint that isn't needed any more."""
    with suppress(FileNotFoundError):
        checkpoint.unlink()
