"""What the tests of strips share: pictures where pooled statistics go wrong, and strips of a given height."""

from __future__ import annotations

from typing import Any, TypeVar

import pytest
import torch
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

from ldm_vae.models.exact import enable_exact_tiling, plan_of
from ldm_vae.models.exact.maps import Tier
from ldm_vae.models.exact.networks import make_program
from ldm_vae.models.exact.run import Execution, Layout

TIERS: tuple[Tier, ...] = ("device", "host", "disk")
Model = TypeVar("Model", bound=nn.Module)


def gradient_picture(*, height: int, width: int, channels: int = 3, seed: int = 0) -> Tensor:
    """Noise on a steep brightness gradient: the mean of every strip is another one."""
    generator = torch.Generator().manual_seed(seed)
    noise = 0.1 * torch.randn(1, channels, height, width, generator=generator)
    return noise + torch.linspace(-1, 1, height)[None, None, :, None]


def in_strips(half: nn.Module, image: Tensor, *, rows: int, tier: Tier = "device") -> Tensor:
    """Run an encoder or decoder with the same number of rows in all its strips."""
    program = make_program(half)
    layout = Layout(tiers=[tier] * len(program.channels), rows=[rows] * len(program.passes))
    height, width = image.shape[2:]
    return Execution(program, layout, height=height, width=width, device=image.device)(image)


def relative_error(result: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a part of the expected values' range."""
    assert result.shape == expected.shape
    return float((result - expected).abs().max() / (expected.max() - expected.min()))


def lively(model: Model) -> Model:
    """Norms that do something: with the ones and zeros they begin with, half of what can go wrong is hidden."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, (nn.GroupNorm, RMSNorm, nn.BatchNorm2d)) and module.weight is not None:
            module.weight.data = 1 + 0.5 * torch.randn(module.weight.shape, generator=generator)
            module.bias.data = 0.5 * torch.randn(module.bias.shape, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = 0.3 * torch.randn(module.num_features, generator=generator)
            module.running_var = 0.5 + torch.rand(module.num_features, generator=generator)
    return model


def least_gib(model: Any, *, half: str, height: int, width: int) -> float:
    """Return the smallest budget that the `encoder` or `decoder` of a model takes an input in, as its error says."""
    enable_exact_tiling(model, memory_gib=1e-9)
    with pytest.raises(ValueError, match="at least") as error:
        plan_of(model, half=half, height=height, width=width)
    return float(str(error.value).split("at least ")[1].split()[0])
