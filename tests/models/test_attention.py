"""Folded attention is attention."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers.models.attention_processor import Attention

from ldm_vae.models.attention import FoldedAttention, fold_attention
from tests.tiny import tiny_autoencoder


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.no_grad()
def test_folded_attention_is_diffusers_own(dtype: torch.dtype) -> None:
    plain = tiny_autoencoder(widths=(8, 16), attention=[False, True])
    for parameter in plain.parameters():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    plain.double()
    folded = copy.deepcopy(plain).to(dtype)
    fold_attention(folded)
    attentions = [module for module in folded.modules() if isinstance(module, Attention)]
    assert len(attentions) == 5
    assert all(isinstance(module.forward, FoldedAttention) for module in attentions)
    hidden = torch.randn(2, 16, 6, 5, dtype=torch.float64).to(memory_format=torch.channels_last)
    for ours, theirs in zip(attentions, (m for m in plain.modules() if isinstance(m, Attention)), strict=True):
        expected, found = theirs(hidden), ours(hidden.to(dtype))
        assert found.dtype == dtype
        assert (found - expected).norm() < (1e-6 if dtype == torch.float64 else 0.02) * expected.norm()


def test_several_heads_are_left() -> None:
    attention = Attention(16, heads=2, dim_head=8, norm_num_groups=4, residual_connection=True, bias=True)
    fold_attention(attention)
    assert not isinstance(vars(attention).get("forward"), FoldedAttention)
