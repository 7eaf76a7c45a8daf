"""When the kernels are used, and how autograd and torch.compile see them.

They are used on a GPU where Triton is installed, after they have been compared there with torch's own group norm, once
a process. `LDM_VAE_KERNELS=off` leaves them out. Nowhere else does anything change.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_vae.system.telling import tell
from ldm_vae.system.text import first_line

SWITCH = "LDM_VAE_KERNELS"
LEAST_TRITON = (3, 6)  # that of torch 2.11
LEAST_CAPABILITY = (8, 0)  # from Ampere on bf16 is multiplied in hardware
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_IN_USE: dict[str, bool] = {}
"""By type of device, whether the kernels are used there."""


def use_kernels(device: torch.device) -> bool:
    """Decide whether the kernels are used on a device from here on, and return it.

    Where they were expected to work and don't, a line says so, and torch's own operators are used.
    """
    if device.type not in _IN_USE:
        _IN_USE[device.type] = _expected(device) and _right(device)
    return _IN_USE[device.type]


def takes(hidden: Tensor) -> bool:
    """Return whether the kernels are used for a map [B, C, ...]."""
    return (
        _IN_USE.get(hidden.device.type, False) and hidden.dtype in DTYPES and hidden.ndim >= 3 and hidden.numel() > 0
    )


def takes_biases(hidden: Tensor) -> bool:
    """Return whether the kernels also add what convolutions leave out: where nothing is differentiated or compiled."""
    return takes(hidden) and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def group_norm(norm: nn.GroupNorm, hidden: Tensor, *, silu: bool, offset: Tensor | None = None) -> Tensor:
    """Return the norm of a map [B, C, ...], with SiLU or without, in the map's type.

    `offset` [C] is added to the map before; it has no gradient.
    """
    result: Tensor = group_norm_silu(hidden, norm.weight, norm.bias, norm.num_groups, norm.eps, silu, offset)[0]
    return result


def add(hidden: Tensor, bias: Tensor, shortcut: Tensor | None = None) -> Tensor:
    """Return a map [B, C, ...] plus `bias` [C], plus a second map, written over the first; nothing has a gradient."""
    from ldm_vae.models.kernels import group_norm as kernels

    return kernels.add(hidden, bias, shortcut)


def _forward(
    hidden: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float, silu: bool, offset: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    from ldm_vae.models.kernels import group_norm as kernels

    return kernels.forward(hidden, weight, bias, num_groups, eps, silu, offset)


def _backward(
    gradient: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    from ldm_vae.models.kernels import group_norm as kernels

    return kernels.backward(gradient, hidden, weight, bias, mean, rstd, silu)


group_norm_silu = torch.library.custom_op(
    "ldm_vae::group_norm_silu",
    _forward,
    mutates_args=(),
    schema="(Tensor hidden, Tensor weight, Tensor bias, int num_groups, float eps, bool silu, Tensor? offset=None)"
    " -> (Tensor, Tensor, Tensor)",
)
group_norm_silu_backward = torch.library.custom_op(
    "ldm_vae::group_norm_silu_backward",
    _backward,
    mutates_args=(),
    schema="(Tensor gradient, Tensor hidden, Tensor weight, Tensor bias, Tensor mean, Tensor rstd, bool silu)"
    " -> (Tensor, Tensor, Tensor)",
)


def _innermost(hidden: Tensor) -> Tensor:
    """Return an empty map of the shape and type of `hidden`, its channels innermost."""
    return torch.empty_like(hidden.movedim(1, -1), memory_format=torch.contiguous_format).movedim(-1, 1)


@group_norm_silu.register_fake
def _forward_fake(
    hidden: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float, silu: bool, offset: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    mean, rstd = (hidden.new_empty(hidden.shape[0], num_groups, dtype=torch.float32) for _ in range(2))
    return _innermost(hidden), mean, rstd


@group_norm_silu_backward.register_fake
def _backward_fake(
    gradient: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _innermost(hidden), torch.empty_like(weight), torch.empty_like(bias)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, bias, _, _, ctx.silu, offset = inputs
    assert offset is None, "the kernels have no gradient at an offset"
    _, mean, rstd = output
    ctx.save_for_backward(hidden, weight, bias, mean, rstd)


def _differentiate(ctx: Any, gradient: Tensor, *of_statistics: Tensor) -> tuple[Tensor | None, ...]:
    hidden, weight, bias, mean, rstd = ctx.saved_tensors
    gradients = group_norm_silu_backward(gradient, hidden, weight, bias, mean, rstd, ctx.silu)
    return *gradients, None, None, None, None


group_norm_silu.register_autograd(_differentiate, setup_context=_keep)


def _expected(device: torch.device) -> bool:
    """Whether a device is one that the kernels are written for, and nobody switched them off."""
    return (
        os.environ.get(SWITCH, "auto").lower() not in ("off", "0", "no", "false")
        and device.type == "cuda"
        and _has_triton()
        and torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY
    )


def _has_triton() -> bool:
    """Whether there is a Triton of a release that the kernels are tested with."""
    try:
        installed = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return False
    return tuple(int(part) for part in re.findall(r"\d+", installed)[:2]) >= LEAST_TRITON


def _right(device: torch.device) -> bool:
    """Whether the kernels run on a device and give there what torch's operators give."""
    try:
        worst = max(relative_error(device, dtype) for dtype in (torch.float32, torch.bfloat16))
    except Exception as error:  # whatever Triton, its compiler or the driver raise: there is another way
        tell(f"the group-norm kernels don't run here ({first_line(error)}); torch's own operators are used")
        return False
    if not worst < 0.02:
        tell(f"the group-norm kernels are off by {worst:.2g} here; torch's own operators are used")
        return False
    return True


def relative_error(device: torch.device, dtype: torch.dtype) -> float:
    """Return by how much results and gradients of the kernels differ from those of float32 operators, relatively."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 96, 9, 7, generator=generator) for _ in range(2)]
    rows = torch.randn(2, 96, generator=generator) + 1
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        leaf, upstream = (value.to(device, dtype, memory_format=torch.channels_last) for value in maps)
        leaf.requires_grad_()
        weight, bias = (row.to(device).requires_grad_() for row in rows)
        found = group_norm_silu(leaf, weight, bias, 32, 1e-6, True)[0]
        ours = [found, *torch.autograd.grad(found, [leaf, weight, bias], upstream)]
        exact = leaf.detach().float().requires_grad_()
        expected = F.silu(F.group_norm(exact, 32, weight, bias, 1e-6))
        theirs = [expected, *torch.autograd.grad(expected, [exact, weight, bias], upstream.float())]
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        column = weight[:, None, None]
        ours += [group_norm_silu(leaf, weight, bias, 32, 1e-6, True, weight)[0], add(leaf.clone(), weight, upstream)]
        theirs += [F.silu(F.group_norm(exact + column, 32, weight, bias, 1e-6)), exact + column + upstream.float()]
    return max(
        float((a.detach().float() - b.detach()).norm() / b.detach().norm()) for a, b in zip(ours, theirs, strict=True)
    )
