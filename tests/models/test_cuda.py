"""What only a GPU can show of the networks: kernels as compiled, recordings as CUDA makes them."""

from __future__ import annotations

import pytest
import torch

from ldm_vae.models.families import family_of
from ldm_vae.models.graphs import CALLS_BEFORE, Graphed
from ldm_vae.models.inference import InferenceAutoencoder
from ldm_vae.models.kernels import fused
from tests.tiny import tiny_autoencoder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_kernels_are_used_and_right(dtype: torch.dtype, limit: float) -> None:
    if not fused._expected(GPU):
        pytest.skip("kernels are not for this GPU or this Triton")
    assert fused.use_kernels(GPU)
    assert fused.relative_error(GPU, dtype) < limit
    hidden = torch.randn(2, 128, 260, 252, device=GPU).to(dtype, memory_format=torch.channels_last)  # several parts
    weight, bias = torch.randn(2, 128, device=GPU)
    found = fused.group_norm_silu(hidden, weight, bias, 32, 1e-6, True)[0]
    exact = torch.nn.functional.silu(
        torch.nn.functional.group_norm(hidden.double(), 32, weight.double(), bias.double(), 1e-6)
    )
    assert (found.double() - exact).norm() < limit * exact.norm()


@pytest.mark.parametrize(("bf16", "limit"), [(False, 1e-4), (True, 0.05)])
def test_recorded_calls_are_those_of_the_cpu(bf16: bool, limit: float) -> None:
    def model(device: torch.device, *, in_bf16: bool) -> InferenceAutoencoder:
        family = family_of(tiny_autoencoder(widths=(32, 64), norm_num_groups=8))
        return InferenceAutoencoder(family, bf16=in_bf16, device=device)

    exact, ours = model(CPU, in_bf16=False), model(GPU, in_bf16=bf16)
    for number in range(CALLS_BEFORE + 2):
        images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(number)) * 2 - 1
        expected = exact.encode(images)[0]
        pictures = exact.decode(expected)
        assert (ours.encode(images)[0].cpu() - expected).norm() < limit * expected.norm()
        assert (ours.decode(expected).cpu() - pictures).norm() < limit * pictures.norm()
    for half in (ours._encode, ours._decode):
        assert isinstance(half, Graphed)
        assert len(half._recordings) == 1
