"""The processes of a run: how they start, what launches are refused, whether they agree, and when one is lost."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, ProjectConfiguration, set_seed
from torch import Tensor, nn

from ldm_vae.config.rules import RunError, require
from ldm_vae.config.run import Config
from ldm_vae.system.memory import keep_freed_memory
from ldm_vae.training.run_folder import RunFolder
from ldm_vae.training.state import TrainingState

Result = TypeVar("Result")

# The others wait so long before they end: the launcher, which kills all processes as soon as it sees one end, must not
# do so before the main one has printed its error.
_GRACE_SECONDS = 5.0

_REFUSED = {
    "DEEPSPEED": "DeepSpeed drives one optimizer and one backward a step; this step has two networks, and needs the "
    "gradient at one weight before the backward",
    "FSDP": "FSDP shards the weight at which the adversarial balance is measured, and an autoencoder is small enough "
    "for every GPU to hold whole",
    "MEGATRON_LM": "Megatron-LM is for transformers",
    "PARALLELISM_CONFIG": "an autoencoder is small enough for every GPU to hold whole",
}


class LostProcessError(RunError):
    """The wait for the other processes broke off."""


class RanksDifferError(RunError):
    """Processes hold different weights, which should be the same."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes of a run, after they have joined."""

    accelerator: Accelerator
    """Wraps networks and reduces the step's own sums, by NCCL on GPUs."""
    hosts: dist.ProcessGroup | None
    """All processes, for tensors and objects on the CPU; None where there is one process. The group uses gloo even
    where the step's sums use NCCL, which notices a lost process only at the timeout and then ends this one without a
    word."""

    @property
    def count(self) -> int:
        """The number of processes."""
        return self.accelerator.num_processes

    def on_main(self, work: Callable[[], Result], *, purpose: str) -> Result:
        """Have the main process do `work`, and give its result to all processes; where it fails, all of them stop.

        Args:
            work: What to do.
            purpose: What the work is for, as in "to write the checkpoint".

        Raises:
            Exception: What `work` raised, in the main process; the others exit silently.
            LostProcessError: The main process died; raised in the others.
        """
        if self.count == 1:
            return work()
        error: Exception | None = None
        outcome: list[object] = [None, False]  # the result, whether it failed
        if self.accelerator.is_main_process:
            try:
                outcome[0] = work()
            except Exception as raised:
                error, outcome[1] = raised, True
        with waiting_for_others(f"(for the main one {purpose})"):
            dist.broadcast_object_list(outcome, src=0, group=self.hosts)
        if error is not None:
            raise error
        if outcome[1]:
            _end_after_main()
        return outcome[0]  # type: ignore[return-value]

    def add_up(self, sums: Iterable[Tensor], *, purpose: str) -> None:
        """Replace each of the tensors, which are on the CPU, by its sum over the processes.

        Raises:
            LostProcessError: Another process is gone.
        """
        if self.count == 1:
            return
        with waiting_for_others(purpose):
            for total in sums:
                dist.all_reduce(total, group=self.hosts)


def join_processes(config: Config) -> Processes:
    """Join the processes of the launch, with the same seed on each.

    Raises:
        ValueError: The launch or the batch size can't give a right run; the message has the reason.
    """
    with told_once(per="node"):
        _check_launch()
        for stage in config.row:
            stage.check_processes(int(os.environ.get("WORLD_SIZE", "1")))
    require(
        config.report_to == "none" or importlib.util.find_spec(config.report_to) is not None,
        f"<report_to> is {config.report_to}, which is not installed: pip install 'ldm-vae[{config.report_to}]'",
    )
    train = config.train
    with waiting_for_others("to join them"):
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # accelerate has to be told: else each process would run alone
            mixed_precision="no",  # autocast is the step's own, around each network
            log_with=None if config.report_to == "none" else config.report_to,
            project_config=ProjectConfiguration(
                config.output_dir, logging_dir=str(RunFolder(Path(config.output_dir)).logs)
            ),
            kwargs_handlers=[
                # Gradients are views into DDP's buckets, which saves a copy of all of them.
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),
                InitProcessGroupKwargs(timeout=timeout(config)),
            ],
        )
        hosts = None
        if accelerator.num_processes > 1:
            hosts = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=timeout(config)))
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not train.deterministic
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    set_seed(config.seed)
    return Processes(accelerator=accelerator, hosts=hosts)


def _check_launch() -> None:
    """Refuse launches by `accelerate launch` that can't train this, before accelerate imports or starts anything."""
    for name, reason in _REFUSED.items():
        require(
            os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() != "true",
            f"launched with {name}, which can't train this: {reason}; launch with plain data parallelism "
            f"(accelerate launch --multi_gpu, or torchrun)",
        )
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    require(
        precision not in ("fp16", "fp8"),
        f"launched with mixed precision {precision}: a VAE's activations overflow float16, and its loss scaling does "
        f"not survive a gradient put together from two losses; launch with `accelerate launch --mixed_precision no` "
        f"and use <train.mixed_precision> bf16",
    )


def timeout(config: Config) -> timedelta:
    """Return the longest wait of a process for the others."""
    return timedelta(minutes=config.train.timeout_minutes)


@contextlib.contextmanager
def waiting_for_others(purpose: str) -> Iterator[None]:
    """Name the wait, in one line, where gloo or NCCL raises because another process is gone or silent.

    Args:
        purpose: Ends the sentence "waiting for the other processes ...".

    Raises:
        LostProcessError: The block's wait for the others broke off.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not (isinstance(error, dist.DistError) or "/gloo/transport/" in text or "NCCL" in text):
            raise
        reason = text.splitlines()[0].partition("] ")[2] or text.splitlines()[0]
        raise LostProcessError(
            f"waiting for the other processes {purpose} broke off: one of them ended, or gave no sign within "
            f"<train.timeout_minutes> ({reason.partition('. ')[0]}). What it printed says why; go on with "
            f"<train.resume_from_checkpoint> latest"
        ) from error


@contextlib.contextmanager
def told_once(*, per: Literal["run", "node"] = "run") -> Iterator[None]:
    """Wrap a check that fails identically on every process.

    Rank 0 of the run, or of each node, raises; the others exit silently.
    """
    try:
        yield
    except (ValueError, RuntimeError):
        if os.environ.get("RANK" if per == "run" else "LOCAL_RANK", "0") == "0":
            raise
        _end_after_main()


def _end_after_main() -> NoReturn:
    """End without a word, once the main process has had the time to print its error."""
    time.sleep(_GRACE_SECONDS)
    raise SystemExit(1)


def check_ranks_agree(state: TrainingState, *, processes: Processes) -> None:
    """Stop where a process's weights are not bit-equal to those of the others.

    Raises:
        RanksDifferError: Processes differ. The message names the ranks that differ from most, or from rank 0, and
            their hosts.
    """
    if processes.count == 1:
        return
    with waiting_for_others("to compare weights"):
        digests: list[tuple[str, str]] = [("", "")] * processes.count
        dist.all_gather_object(digests, (weights_digest(state), socket.gethostname()), group=processes.hosts)
    ((common, _),) = Counter(digest for digest, _ in digests).most_common(1)
    wrong = [f"{rank} (on {host})" for rank, (digest, host) in enumerate(digests) if digest != common]
    with told_once():
        if wrong:
            raise RanksDifferError(
                f"at step {state.step} the weights of rank {', '.join(wrong)} are not those of the other ranks: its "
                f"hardware is faulty, or its software or files are not theirs. Nothing of this was saved: take the "
                f"rank out, and go on with <train.resume_from_checkpoint> latest"
            )


def weights_digest(state: TrainingState) -> str:
    """Return the sha256 of all weights, trained or frozen, of their average and of lam.

    It is equal on all processes, or something is broken.
    """
    networks: list[nn.Module] = [state.trainable, *state.frozen_networks]
    if state.discriminator is not None:
        networks.append(state.discriminator.module)
    tensors = [tensor for network in networks for tensor in network.state_dict().values()]
    if state.ema is not None:
        tensors += state.ema.shadow_params
    digest = hashlib.sha256()
    for tensor in [*tensors, state.lam]:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
