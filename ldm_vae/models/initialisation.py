"""First weights of an autoencoder that learns from the first update on."""

from __future__ import annotations

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from ldm_vae.models.families.family import Family

QUIET_LOGVAR = -6.0  # a posterior standard deviation of 0.05, beside means of about 1


@torch.no_grad()
def quiet_(family: Family) -> Family:
    """Give a fresh autoencoder weights that let signal and gradient through, in place.

    - Weights of convolutions and linear layers are normal with variance 1 / fan-in, and biases are zero, so that a
      layer keeps its input's scale. torch's default has a third of this variance, so that each layer without a norm
      before it damps the signal.
    - The last layer of every residual branch (`conv2` of a block, `to_out` of an attention) is zero: at the start the
      network is its stem, its resamplings and its shortcuts, however deep it is, and a block takes part as it learns
      to help (Goyal et al. 2017, section 5.1; Zhang et al. 2019, "Fixup").
    - The posterior starts narrow: weights of the log-variance are zero, and its bias is -6. With torch's default the
      standard deviation starts at about 1, and the decoder has to learn from a latent that is mostly noise.

    Args:
        family: A model of residual blocks and a Gaussian posterior, with or without attention.
    """
    for module in family.model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=fan_in**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in family.model.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
        elif isinstance(module, Attention):
            nn.init.zeros_(module.to_out[0].weight)
    if family.bottleneck.has_posterior:
        give_log_variance_(family, QUIET_LOGVAR)
    return family


@torch.no_grad()
def give_log_variance_(family: Family, logvar: float) -> None:
    """Make the encoder give this log-variance for every image, in place."""
    moments, latent_channels = family.hidden_layer, family.latent_channels
    assert moments.bias is not None
    nn.init.zeros_(moments.weight[latent_channels:])
    nn.init.constant_(moments.bias[latent_channels:], logvar)
