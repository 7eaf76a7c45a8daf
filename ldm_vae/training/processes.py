"""The processes of a run: how they start, what they can't be, and that they agree."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
    set_seed,
)

from ldm_vae.config import Config, require

Result = TypeVar("Result")

_REFUSED = {
    DistributedType.DEEPSPEED: "DeepSpeed drives one optimizer and one backward a step; this step has two "
    "networks, and needs the gradient at one weight before the backward",
    DistributedType.FSDP: "FSDP shards the weight at which the adversarial balance is measured, and an autoencoder is "
    "small enough for every GPU to hold whole",
    DistributedType.MEGATRON_LM: "Megatron is for transformers",
}


def start_accelerator(config: Config) -> Accelerator:
    """Join the processes of the launch, with the same seed on each.

    Raises:
        ValueError: for a launch or a batch size that can't give a right run, with the reason.
    """
    launched_precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    require(
        launched_precision not in ("fp16", "fp8"),
        f"launched with mixed precision {launched_precision}: a VAE's activations overflow float16, and its loss "
        f"scaling does not survive a gradient put together from two losses; use --train.mixed_precision bf16",
    )
    train = config.train
    accelerator = Accelerator(
        mixed_precision="no",  # autocast is the step's own, around each network
        log_with=None if config.report_to == "none" else config.report_to,
        project_dir=config.output_dir,
        kwargs_handlers=[
            # nothing keeps buffers, so there are none to broadcast
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=timeout(config)),
        ],
    )
    reason = _REFUSED.get(accelerator.distributed_type)
    require(reason is None, f"launched with {accelerator.distributed_type.value}, which can't train this: {reason}")
    _, accumulation = train.accumulation(num_processes=accelerator.num_processes)
    require(
        config.loss.adaptive_weight != "same_step" or config.loss.disc_weight == 0 or accumulation == 1,
        f"loss.adaptive_weight is same_step, which needs the whole batch at once, but train.micro_batch_size makes "
        f"{accumulation} micro-batches; take lagged, or leave train.micro_batch_size out",
    )
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not train.deterministic
    set_seed(config.seed)
    return accelerator


def timeout(config: Config) -> timedelta:
    """Longest wait of a process for the others."""
    return timedelta(minutes=config.train.timeout_minutes)


def on_main_process(accelerator: Accelerator, work: Callable[[], Result]) -> Result:
    """Have the main process do `work`, and give its result to all; where it fails, all stop with it.

    Raises:
        OSError, ValueError: what `work` raised, in the main process; the others exit without a word of their own.
    """
    outcome: list[object] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except (OSError, ValueError) as error:
            outcome[1] = error
    if accelerator.num_processes > 1:
        failed, result = outcome[1] is not None, outcome[0]
        shared = broadcast_object_list([result, failed])
        outcome[0] = shared[0]
        if shared[1] and not accelerator.is_main_process:
            raise SystemExit(1)
    if isinstance(outcome[1], Exception):
        raise outcome[1]
    return outcome[0]  # type: ignore[return-value]


def check_ranks_agree(digest: str, *, accelerator: Accelerator) -> None:
    """Stop where a process's weights are not bit-equal to the main process's.

    Raises:
        RuntimeError: naming the ranks.
    """
    if accelerator.num_processes == 1:
        return
    digests = gather_object([digest])
    wrong = [str(rank) for rank, other in enumerate(digests) if other != digests[0]]
    if wrong:
        raise RuntimeError(
            f"the weights of rank {', '.join(wrong)} differ from rank 0's; that hardware, or its software, computes "
            f"something else. The last checkpoint, from before, is whole: take the node out and resume"
        )
