"""Attention of diffusers' autoencoders in fewer passes, without gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn


class FoldedAttention:
    """An `Attention` of one head with two products of weights less.

    Queries, keys and values are one product. The output's projection is folded into the values': the weights p of the
    sum over positions add up to 1, so W_o (Σ p (W_v x + b_v)) + b_o = Σ p (W_o W_v x + W_o b_v + b_o). Weights are
    folded once, as the module has them at the first call.
    """

    def __init__(self, attention: Attention) -> None:
        self._attention = attention
        self._weights: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def __call__(self, hidden: Tensor, temb: None = None) -> Tensor:
        """Return the input [B, C, H, W] plus the attention over its positions."""
        batch, channels, height, width = hidden.shape
        if self._weights is None:
            self._weights = self._fold()
        normalised = self._attention.group_norm(hidden)
        tokens = normalised.permute(0, 2, 3, 1).reshape(batch, 1, height * width, channels)
        query, key, value = F.linear(tokens, *self._weights).chunk(3, dim=-1)
        result = F.scaled_dot_product_attention(query, key, value)
        return result.view(batch, height, width, channels).permute(0, 3, 1, 2) + hidden

    def _fold(self) -> tuple[Tensor, Tensor]:
        """Return weight [3C, C] and bias [3C] of queries, keys and folded values, in the weights' own type."""
        attention, out = self._attention, self._attention.to_out[0]
        layers = (attention.to_q, attention.to_k, attention.to_v)
        weights = [layer.weight.float() for layer in layers]
        biases = [_bias(layer) for layer in layers]
        weights[2] = out.weight.float() @ weights[2]
        biases[2] = out.weight.float() @ biases[2] + _bias(out)
        dtype = out.weight.dtype
        return torch.cat(weights).to(dtype), torch.cat(biases).to(dtype)


def fold_attention(network: nn.Module) -> None:
    """Give all attention of one head in a network, which isn't to be trained any more, the forward above."""
    for module in network.modules():
        if isinstance(module, Attention) and _is_plain(module):
            module.forward = FoldedAttention(module)


def _is_plain(attention: Attention) -> bool:
    return (
        attention.heads == 1
        and attention.residual_connection
        and attention.rescale_output_factor == 1
        and attention.group_norm is not None
        and attention.spatial_norm is None
        and attention.norm_q is None
        and attention.norm_k is None
    )


def _bias(layer: nn.Linear) -> Tensor:
    return layer.weight.new_zeros(len(layer.weight), dtype=torch.float32) if layer.bias is None else layer.bias.float()
