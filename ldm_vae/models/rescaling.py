"""Activations measured against float16's range, and an exact rescaling of weights that makes them fit."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from ldm_vae.models.families.family import Family

FLOAT16_LIMIT = torch.finfo(torch.float16).max
MARGIN = 4.0
"""How many times the largest measured magnitude must fit into float16, since other pictures may reach further."""


@contextmanager
def recorded_magnitudes(family: Family, magnitudes: dict[str, Tensor]) -> Iterator[None]:
    """Raise `magnitudes` to the largest absolute value that each layer puts out while the block runs."""

    def record(name: str, output: Tensor) -> None:
        largest = output.detach().abs().amax().float()
        magnitudes[name] = torch.maximum(magnitudes[name], largest) if name in magnitudes else largest

    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: record(name, output))
        for name, module in family.model.named_modules()
        if not list(module.children()) or isinstance(module, (ResnetBlock2D, Attention))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def rescale_activations(family: Family, magnitudes: dict[str, float]) -> Family | None:
    """Return a copy whose activations are scaled down to fit into float16, or None where nothing needs to be.

    A residual network with group norms computes the same whatever the scale of its residual stream, and whatever the
    scale between a block's first convolution and its second norm: every reader of either normalises it. So all writes
    into a stream are divided by one power of two, which is exact in binary floating point. Only the epsilon that a
    norm adds to a variance, which is now smaller, makes a difference; the caller measures it. Layers that no norm
    follows (the last convolutions, the attention's projections) stay as they are.

    Args:
        family: The autoencoder.
        magnitudes: Largest absolute value of each layer's output, by the layer's name.
    """
    rescaled = copy.deepcopy(family)
    changed = False
    for network_name in ("encoder", "decoder") if family.has_encoder else ("decoder",):
        network = getattr(rescaled.model, network_name)
        largest = 0.0
        for name, module in network.named_modules():
            if isinstance(module, ResnetBlock2D):
                branch = _divisor(magnitudes[f"{network_name}.{name}.conv1"])
                changed |= branch > 1
                _divide(module.conv1, branch)
            if isinstance(module, (ResnetBlock2D, Attention)):
                written = "conv2" if isinstance(module, ResnetBlock2D) else "to_out.0"
                parts = (magnitudes[f"{network_name}.{name}"], magnitudes[f"{network_name}.{name}.{written}"])
                largest = max(largest, *parts)
        largest = max(largest, magnitudes[f"{network_name}.conv_in"])
        changed |= _divisor(largest) > 1
        _divide_stream(network, _divisor(largest))
    return rescaled if changed else None


def _divisor(magnitude: float) -> float:
    """Return the smallest power of two, at least 1, by which a magnitude times `MARGIN` fits into float16."""
    return 2.0 ** max(0, math.ceil(math.log2(max(magnitude, 1) * MARGIN / FLOAT16_LIMIT)))


@torch.no_grad()
def _divide(layer: nn.Module, divisor: float) -> None:
    for parameter in layer.parameters():
        parameter.div_(divisor)


@torch.no_grad()
def _divide_stream(network: nn.Module, divisor: float) -> None:
    """Divide all that is written into the residual stream of an encoder or decoder."""
    _divide(network.get_submodule("conv_in"), divisor)
    for module in network.modules():
        if isinstance(module, ResnetBlock2D):
            _divide(module.conv2, divisor)
            if module.conv_shortcut is not None:
                module.conv_shortcut.bias.div_(divisor)  # its input is divided already
        elif isinstance(module, Attention):
            _divide(module.get_submodule("to_out"), divisor)  # linear, dropout
        elif isinstance(module, (Downsample2D, Upsample2D)):
            module.conv.bias.div_(divisor)
