"""An autoencoder given more latent channels, or fewer."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_vae.models.families.family import Family


def with_latent_channels(family: Family, latent_channels: int) -> Family:
    """Return a copy with another number of latent channels, the first min(old, new) kept as they are.

    The moments of the kept channels don't change. New channels enter the decoder with zero weight, so the
    reconstruction doesn't change either until training finds a use for them. Of dropped channels the decoder gets
    nothing.
    """
    autoencoder, old, new = family.model, family.latent_channels, latent_channels
    statistics = {"latents_mean": None, "latents_std": None}  # they are of the old channels
    widened = family.from_config({**autoencoder.config, "latent_channels": new, **statistics})
    state, source = widened.model.state_dict(), autoencoder.state_dict()
    kept = torch.arange(min(old, new))
    old_moments, new_moments = torch.cat([kept, old + kept]), torch.cat([kept, new + kept])

    for name, target in state.items():
        if target.shape == source[name].shape:
            target.copy_(source[name])
    if autoencoder.quant_conv is not None and new < old:
        source |= _fold_quant_conv(source)  # a kept moment may come from a dropped channel of conv_out
    for name in ("encoder.conv_out.weight", "encoder.conv_out.bias"):
        state[name][new_moments] = source[name][old_moments]
    _graft(state, source, "decoder.conv_in", columns=(kept, kept))
    if autoencoder.quant_conv is not None:
        _graft(state, source, "quant_conv", rows=(new_moments, old_moments), columns=(new_moments, old_moments))
        _graft(state, source, "post_quant_conv", rows=(kept, kept), columns=(kept, kept))
    widened.model.load_state_dict(state)
    return widened.train(autoencoder.training)


def _fold_quant_conv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with quant_conv folded into the encoder's last convolution, and an identity in its place."""
    mixing = state["quant_conv.weight"][:, :, 0, 0]
    return {
        "encoder.conv_out.weight": torch.einsum("om,mihw->oihw", mixing, state["encoder.conv_out.weight"]),
        "encoder.conv_out.bias": mixing @ state["encoder.conv_out.bias"] + state["quant_conv.bias"],
        "quant_conv.weight": torch.eye(len(mixing))[:, :, None, None],
        "quant_conv.bias": torch.zeros(len(mixing)),
    }


Indices = tuple[Tensor, Tensor]


def _graft(
    state: dict[str, Tensor], source: dict[str, Tensor], name: str, *, columns: Indices, rows: Indices | None = None
) -> None:
    """Copy a convolution's kept rows and columns, and set to zero what kept rows would take from new columns."""
    weight, old_weight = state[f"{name}.weight"], source[f"{name}.weight"]
    every = torch.arange(len(old_weight))
    new_rows, old_rows = rows or (every, every)
    weight[new_rows] = 0
    weight[new_rows[:, None], columns[0]] = old_weight[old_rows[:, None], columns[1]]
    state[f"{name}.bias"][new_rows] = source[f"{name}.bias"][old_rows]
