"""Optimizers (AdamW, Muon) and learning-rate schedules: those of diffusers and `constant_with_decay`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from ldm_vae.config.rules import FieldError
from ldm_vae.config.train import TrainConfig

MUON_MOMENTUM = 0.95
# Coefficients of the five Newton-Schulz iterations X <- aX + (bA + cA²)X, A = XX', that bring singular values to about
# 1 (Cesista et al. 2025, "Squeezing 1-2% efficiency gains out of Muon by optimizing the Newton-Schulz coefficients").
NEWTON_SCHULZ = [
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
]


class MuonAdamW(AdamW):
    """AdamW whose groups with `muon: True` are updated by Muon (Jordan et al. 2024).

    A weight's momentum with Nesterov's step, taken as a matrix [out, in·kh·kw], is replaced by the nearest orthogonal
    matrix, which is scaled so that its elements' root mean square is that of an AdamW update (Liu et al. 2025, "Muon
    is scalable for LLM training"):

        M <- 0.95 M + 0.05 grad
        W <- W - lr · 0.2 · sqrt(max(out, in·kh·kw)) · orthogonal(0.95 M + 0.05 grad)

    The iteration is timm's; the loop around it is not. Unlike timm's class and like fused AdamW, this one takes the
    clipping factor and the verdict on a non-finite step from the device (`grad_scale`, `found_inf`), so that the host
    needn't wait. It also puts weights of one shape through the iteration together.

    Args:
        groups: Parameter groups with a `muon` key.
        orthogonalise: Maps matrices [k, out, in] to their orthogonal factors, up to rounding.
        arguments: Arguments of AdamW.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, orthogonalise: Callable[[Tensor], Tensor], **arguments: Any
    ) -> None:
        super().__init__(groups, fused=True, **arguments)
        self._orthogonalise = orthogonalise

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all groups, or none where `found_inf` says so."""
        for group in self.param_groups:
            if group["muon"]:
                shapes: dict[torch.Size, list[nn.Parameter]] = {}
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        shapes.setdefault(parameter.shape, []).append(parameter)
                for parameters in shapes.values():
                    self._muon(parameters, learning_rate=group["lr"], weight_decay=group["weight_decay"])
        super().step()  # passes over parameters without a gradient

    def _muon(self, parameters: list[nn.Parameter], *, learning_rate: float, weight_decay: float) -> None:
        """Update parameters of one shape, [out, in, ...], and use up their gradients."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        before = torch.stack(buffers)  # [k, out, in, ...]
        gradients = torch.stack([parameter.grad for parameter in parameters if parameter.grad is not None])
        gradients = gradients if grad_scale is None else gradients / grad_scale
        momentum = before.lerp(gradients, 1 - MUON_MOMENTUM)
        if found_inf is not None:
            momentum = torch.where(found_inf > 0, before, momentum)
        ahead = momentum.lerp(gradients, 1 - MUON_MOMENTUM)
        updates = self._orthogonalise(ahead.flatten(2)).view_as(momentum)
        rate = learning_rate * 0.2 * max(updates[0].flatten(1).shape) ** 0.5
        for parameter, buffer, new, update in zip(parameters, buffers, momentum, updates, strict=True):
            buffer.copy_(new)
            changed = parameter * (1 - learning_rate * weight_decay) - rate * update
            parameter.copy_(changed if found_inf is None else torch.where(found_inf > 0, parameter, changed))
            parameter.grad = None


def build_optimizer(
    module: nn.Module,
    train: TrainConfig,
    *,
    name: str,
    learning_rate: float,
    bf16: bool,
    inner_weights: Sequence[nn.Parameter] = (),
) -> AdamW:
    """Return an optimizer of a module's trained parameters.

    Args:
        module: The network.
        train: Where betas, epsilon and weight decay are taken from.
        name: `adamw` or `muon`.
        learning_rate: The constant learning rate.
        bf16: Whether Muon iterates in bfloat16, which is enough for it, or in float32.
        inner_weights: The module's weights that Muon takes: convolutions and linear layers inside blocks. Layers that
            border on the image or the latent are none; their rows or columns have a meaning of their own.

    Raises:
        ValueError: Muon's package is missing.
    """
    arguments: dict[str, Any] = {
        "lr": learning_rate,
        "betas": (train.adam_beta1, train.adam_beta2),
        "eps": train.adam_epsilon,
        "weight_decay": train.weight_decay,
    }
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if name == "adamw":
        # Only a fused AdamW takes the clipping factor and the verdict on a non-finite step from the device.
        return AdamW(trained, fused=True, **arguments)
    chosen = {id(weight) for weight in inner_weights}
    inner = [parameter for parameter in trained if id(parameter) in chosen]
    rest = [parameter for parameter in trained if id(parameter) not in chosen]
    groups = [{"params": rest, "muon": False}, {"params": inner, "muon": True}]
    return MuonAdamW(groups, orthogonalise=_newton_schulz(torch.bfloat16 if bf16 else torch.float32), **arguments)


def _newton_schulz(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    try:
        from timm.optim.muon import zeropower_via_newtonschulz
    except ImportError:
        raise FieldError(
            "<train.optimizer> is muon, which needs timm 1.0.21 or later: pip install 'ldm-vae[muon]', or take adamw"
        ) from None

    def orthogonalise(matrices: Tensor) -> Tensor:
        iterated: Tensor = zeropower_via_newtonschulz(matrices, len(NEWTON_SCHULZ), NEWTON_SCHULZ, dtype=dtype)
        return iterated.float()

    return orthogonalise


def build_schedule(optimizer: AdamW, train: TrainConfig, *, num_steps: int) -> LambdaLR:
    """Return a schedule of the learning rate over `num_steps` updates. It depends on the update's number alone."""
    if train.lr_scheduler == "constant_with_decay":
        return LambdaLR(optimizer, constant_with_decay(train, num_steps=num_steps))
    # It isn't wrapped by accelerate, whose scheduler makes a step for each process.
    return get_scheduler(
        train.lr_scheduler, optimizer, num_warmup_steps=train.lr_warmup_steps, num_training_steps=num_steps
    )


def constant_with_decay(train: TrainConfig, *, num_steps: int) -> Callable[[int], float]:
    """Return a function from an update's number to the part of the peak rate that it has.

    The part rises in a straight line over the warm-up, is 1, and falls in a straight line to 0 over the last
    `lr_decay_fraction` of the updates.
    """
    decay_steps = max(1, round(train.lr_decay_fraction * num_steps))

    def rate(step: int) -> float:
        warmup = step / train.lr_warmup_steps if step < train.lr_warmup_steps else 1.0
        return max(0.0, min(warmup, (num_steps - step) / decay_steps))

    return rate
