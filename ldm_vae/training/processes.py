"""The processes of a run: how they start, what they can't be, that they agree, and what is said when one is lost."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Literal, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, ProjectConfiguration, set_seed
from torch import nn

from ldm_vae.config.rules import require
from ldm_vae.config.run import Config
from ldm_vae.system.memory import keep_freed_memory
from ldm_vae.training.run_folder import RunFolder
from ldm_vae.training.state import TrainingState

Result = TypeVar("Result")

# In which the main process tells its error, before the launcher sees another one end and kills them all.
_GRACE_SECONDS = 5.0

# All processes, for what they tell each other beside the step; by gloo also where the step's own sums go by NCCL,
# which sees a lost process only at the timeout, and then ends this one without a word.
_hosts: dist.ProcessGroup | None = None

_REFUSED = {
    "DEEPSPEED": "DeepSpeed drives one optimizer and one backward a step; this step has two networks, and needs the "
    "gradient at one weight before the backward",
    "FSDP": "FSDP shards the weight at which the adversarial balance is measured, and an autoencoder is small enough "
    "for every GPU to hold whole",
    "MEGATRON_LM": "Megatron-LM is for transformers",
    "PARALLELISM_CONFIG": "an autoencoder is small enough for every GPU to hold whole",
}


class LostProcessError(RuntimeError):
    """A wait for the other processes that broke off."""


class RanksDifferError(RuntimeError):
    """Processes that should hold the same weights and don't."""


def start_accelerator(config: Config) -> Accelerator:
    """Join the processes of the launch, with the same seed on each.

    Raises:
        ValueError: for a launch or a batch size that can't give a right run, with the reason.
    """
    with told_once(per="node"):
        _check_launch()
        config.check_processes(int(os.environ.get("WORLD_SIZE", "1")))
    require(
        config.report_to == "none" or importlib.util.find_spec(config.report_to) is not None,
        f"report_to is {config.report_to}, which is not installed: pip install 'ldm-vae[{config.report_to}]'",
    )
    train = config.train
    global _hosts
    with waiting_for_others("to join them"):
        accelerator = Accelerator(
            mixed_precision="no",  # autocast is the step's own, around each network
            log_with=None if config.report_to == "none" else config.report_to,
            project_config=ProjectConfiguration(
                config.output_dir, logging_dir=str(RunFolder(Path(config.output_dir)).logs)
            ),
            kwargs_handlers=[
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),
                InitProcessGroupKwargs(timeout=timeout(config)),
            ],
        )
        _hosts = None
        if accelerator.num_processes > 1:
            _hosts = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=timeout(config)))
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not train.deterministic
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    set_seed(config.seed)
    return accelerator


def host_group() -> dist.ProcessGroup | None:
    """All processes of the run, for tensors and objects on the CPU; none where there is one process."""
    return _hosts


def _check_launch() -> None:
    """Refuse what `accelerate launch` may have asked for, before accelerate imports or starts any of it."""
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
        f"not survive a gradient put together from two losses; launch with --mixed_precision no and use "
        f"--train.mixed_precision bf16",
    )


def timeout(config: Config) -> timedelta:
    """Longest wait of a process for the others."""
    return timedelta(minutes=config.train.timeout_minutes)


@contextlib.contextmanager
def waiting_for_others(purpose: str) -> Iterator[None]:
    """Turn what gloo and NCCL raise, when another process is gone or silent, into a line that says which wait it was.

    Args:
        purpose: ends "waiting for the other processes ...".
    Raises:
        LostProcessError: where the block's wait for the others broke off.
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
            f"train.timeout_minutes ({reason.partition('. ')[0]}). What it printed says why; go on with "
            f"--train.resume_from_checkpoint latest"
        ) from error


@contextlib.contextmanager
def told_once(*, per: Literal["run", "node"] = "run") -> Iterator[None]:
    """For what all processes of the run, or of a node, raise alike: the first raises it, the others end after it
    without a word."""
    try:
        yield
    except (ValueError, RuntimeError):
        if os.environ.get("RANK" if per == "run" else "LOCAL_RANK", "0") == "0":
            raise
        _end_after_main()


def _end_after_main() -> NoReturn:
    time.sleep(_GRACE_SECONDS)
    raise SystemExit(1)


def on_main_process(accelerator: Accelerator, work: Callable[[], Result], *, purpose: str) -> Result:
    """Have the main process do `work`, and give its result to all; where it fails, all stop with it.

    Args:
        purpose: what the work is for, as in "to write the checkpoint".

    Raises:
        Exception: what `work` raised, in the main process; the others exit without a word of their own.
        LostProcessError: in the others, where the main process died.
    """
    if accelerator.num_processes == 1:
        return work()
    error: Exception | None = None
    outcome: list[object] = [None, False]  # the result, whether it failed
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except Exception as raised:
            error, outcome[1] = raised, True
    with waiting_for_others(f"(for the main one {purpose})"):
        dist.broadcast_object_list(outcome, src=0, group=host_group())
    if error is not None:
        raise error
    if outcome[1]:
        _end_after_main()
    return outcome[0]  # type: ignore[return-value]


def check_ranks_agree(state: TrainingState, *, accelerator: Accelerator) -> None:
    """Stop where a process's weights are not bit-equal to those of the others.

    Raises:
        RanksDifferError: naming the ranks that differ from most, or from rank 0, and their hosts.
    """
    if accelerator.num_processes == 1:
        return
    with waiting_for_others("to compare weights"):
        held: list[tuple[str, str]] = [("", "")] * accelerator.num_processes
        dist.all_gather_object(held, (weights_digest(state), socket.gethostname()), group=host_group())
    ((common, _),) = Counter(digest for digest, _ in held).most_common(1)
    wrong = [f"{rank} (on {host})" for rank, (digest, host) in enumerate(held) if digest != common]
    with told_once():
        if wrong:
            raise RanksDifferError(
                f"at step {state.step} the weights of rank {', '.join(wrong)} are not those of the other ranks: its "
                f"hardware is faulty, or its software or files are not theirs. Nothing of that was saved: take it "
                f"out, and go on with --train.resume_from_checkpoint latest"
            )


def weights_digest(state: TrainingState) -> str:
    """sha256 of all weights, trained or frozen, their average and lam: equal on all processes, or
    something is broken."""
    networks: list[nn.Module] = [state.trainable, *state.objective.frozen_networks.values()]
    if state.discriminator is not None:
        networks.append(state.discriminator.module)
    tensors = [tensor for network in networks for tensor in network.state_dict().values()]
    if state.ema is not None:
        tensors += state.ema.shadow_params
    digest = hashlib.sha256()
    for tensor in [*tensors, state.lam]:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
