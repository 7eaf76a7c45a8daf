"""Make an autoencoder's encoder and decoder exact under a budget of memory."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from diffusers.models.autoencoders.vae import VectorQuantizer
from torch import Tensor, nn

from ldm_vae.models.exact.codes import QuantiseInParts
from ldm_vae.models.exact.networks import make_program
from ldm_vae.models.exact.pace import Pace, in_words
from ldm_vae.models.exact.plan import GIB, Plan, make_plan
from ldm_vae.models.exact.program import Program
from ldm_vae.models.exact.run import Execution
from ldm_vae.models.exact.sharing import Sharing


@dataclass
class ExactForward:
    """What stands in for an encoder's or decoder's forward."""

    name: str
    half: nn.Module
    budget_bytes: int
    folder: str | None
    tell: Callable[[str], None]
    whole: Callable[..., Tensor]
    program: Program
    sharing: Sharing
    plans: dict[tuple[object, ...], Plan] = field(default_factory=dict)
    pace: Pace | None = None

    def plan(self, *, height: int, width: int, input_bytes: int = 4) -> Plan:
        """The plan for one input of this size.

        Raises:
            ValueError: The budget is too small for it.
        """
        device = next(self.half.parameters()).device
        key = (height, width, input_bytes, device, next(self.half.parameters()).dtype)
        if key not in self.plans:
            self.plans[key] = make_plan(
                self.program,
                height=height,
                width=width,
                budget_bytes=self.budget_bytes,
                device=device,
                input_bytes=input_bytes,
                num_processes=self.sharing.num_processes,
                folder=self.folder,
            )
            if self.plans[key].layout is not None:
                self._tell(self.plans[key], height=height, width=width, device=device)
        return self.plans[key]

    def _tell(self, plan: Plan, *, height: int, width: int, device: torch.device) -> None:
        if self.tell is _say_nothing:
            return
        if self.pace is None:
            self.pace = Pace.of(self.program, device=device)
        convolved = (plan.flops - plan.attention_flops) / self.pace.convolution
        seconds = (convolved + plan.attention_flops / self.pace.attention) / self.sharing.num_processes
        self.tell(f"{self.name}, {height} x {width}: {plan}, about {in_words(seconds)}")

    def __call__(self, images: Tensor, *args: Any) -> Tensor:
        """The half's result for [B, C, H, W], as many images at once as fit, or each in strips.

        Raises:
            ValueError: The budget is too small, a gradient is asked for that strips don't give, or a batch norm isn't
                in eval mode.
        """
        height, width = images.shape[2:]
        plan = self.plan(height=height, width=width, input_bytes=images.element_size())
        if plan.layout is None:
            at_once = max(1, self.budget_bytes // plan.peak_bytes)
            parts = [self.whole(part, *args) for part in images.split(at_once)]
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        if torch.is_grad_enabled() and images.requires_grad:
            raise ValueError("exact tiling gives no gradients; use torch.no_grad(), or disable_exact_tiling")
        if any(norm.training for norm in self.program.batch_norms):
            raise ValueError("exact tiling needs the autoencoder in eval mode, for its batch norms")
        results = []
        for image in images.split(1):
            execution = Execution(
                self.program, plan.layout, height=height, width=width, device=images.device, sharing=self.sharing
            )
            results.append(execution(image))
        return results[0] if len(results) == 1 else torch.cat(results)


HALVES = ("encoder", "decoder")
REPLACED = (*HALVES, "quantize")  # modules that get another forward


def tell_plan(line: str) -> None:
    """Write a plan to stderr, from the first of a launch's processes."""
    if os.environ.get("RANK", "0") == "0":
        print(f"exact tiling: {line}", file=sys.stderr)


def _say_nothing(line: str) -> None:
    pass


def enable_exact_tiling(
    autoencoder: Any,
    *,
    memory_gib: float,
    folder: str | None = None,
    group: dist.ProcessGroup | None = None,
    tell: Callable[[str], None] = _say_nothing,
) -> Any:
    """Make `encode` and `decode` of a diffusers autoencoder exact under a budget, also inside a pipeline.

    >>> from ldm_vae import enable_exact_tiling, load_autoencoder
    >>> autoencoder = enable_exact_tiling(load_autoencoder("export"), memory_gib=2)

    Where an image fits into the budget, nothing changes. Else encoder and decoder run strip by strip, with the result
    of the whole image up to rounding; what doesn't fit on the device lies in host memory, and on a CPU in a temporary
    file.

    Args:
        autoencoder: A diffusers model, which is changed in place.
        memory_gib: Memory of its device that an encode or decode may take beside the weights, in GiB.
        folder: Where temporary files are made. By default it is the system's folder for them.
        group: Processes that share each image: all call `encode` or `decode` with the same input, each computes
            its part of the rows, and all get the whole result.
        tell: Called with one line for each plan, before the work begins.

    Returns:
        The autoencoder.

    Raises:
        ValueError: The budget is not positive, or the model's class can't be run in strips.
    """
    if not memory_gib > 0:
        raise ValueError(f"memory_gib is {memory_gib}; it must be positive")
    disable_exact_tiling(autoencoder)
    for name in HALVES:
        half = getattr(autoencoder, name)
        half.forward = ExactForward(
            name=name,
            half=half,
            budget_bytes=int(memory_gib * GIB),
            folder=folder,
            tell=tell,
            whole=functools.partial(type(half).forward, half),
            program=make_program(half),
            sharing=Sharing(group),
        )
    quantizer = getattr(autoencoder, "quantize", None)
    if isinstance(quantizer, VectorQuantizer) and quantizer.remap is None and not quantizer.sane_index_shape:
        whole = functools.partial(VectorQuantizer.forward, quantizer)
        quantizer.forward = QuantiseInParts(quantizer, int(memory_gib * GIB), whole)
    if hasattr(autoencoder, "disable_tiling"):
        autoencoder.disable_tiling()  # diffusers' own tiles would be cut before ours are
    return autoencoder


def disable_exact_tiling(autoencoder: Any) -> None:
    """Give encoder and decoder their own forward back."""
    for name in REPLACED:
        module: Any = getattr(autoencoder, name, None)
        if isinstance(getattr(module, "forward", None), ExactForward | QuantiseInParts):
            del module.forward


@contextmanager
def within_memory(autoencoder: Any, memory_gib: float | None) -> Iterator[None]:
    """Have exact tiling in the block only, under a budget in GiB; None: nothing changes."""
    if memory_gib is None:
        yield
        return
    modules = {name: getattr(autoencoder, name) for name in REPLACED if hasattr(autoencoder, name)}
    before = {name: vars(module).get("forward") for name, module in modules.items()}
    enable_exact_tiling(autoencoder, memory_gib=memory_gib)
    try:
        yield
    finally:
        disable_exact_tiling(autoencoder)
        for name, forward in before.items():
            if forward is not None:
                modules[name].forward = forward


def plan_of(autoencoder: Any, *, half: str, height: int, width: int) -> Plan:
    """The plan of an autoencoder with exact tiling for one input of its `encoder` (pixels) or `decoder` (latents)."""
    forward = getattr(autoencoder, half).forward
    assert isinstance(forward, ExactForward), "enable_exact_tiling comes first"
    return forward.plan(height=height, width=width)
