"""AutoencoderKLFlux2: FLUX.2's autoencoder, kl-f8 with 32 channels whose 2x2 patches a batch norm whitens."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLFlux2
from torch import Tensor

from ldm_vae.config.model import ModelConfig
from ldm_vae.models.families.kl import KL
from ldm_vae.models.normalisation import SCALING_FIELDS
from ldm_vae.system.float64 import in_float64


class Flux2(KL):
    """The architecture of AutoencoderKL, and statistics of its latents instead of a scaling factor.

    Encoder and decoder never run the batch norm `vae.bn`, which has no weights: pipelines read its running mean and
    variance, a number a channel and place in a patch, and normalise by them.
    """

    name = "flux2"
    diffusers_class = AutoencoderKLFlux2
    architecture = (*KL.architecture, "decoder_block_out_channels", "patch_size")
    decoder_names = (*KL.decoder_names, "bn.")
    default_latent_channels = 32
    tag = None
    has_single_file = False
    scalings = ()

    @classmethod
    def arguments(cls, config: ModelConfig) -> dict[str, Any]:
        """The class's arguments for a model from scratch."""
        widths = config.decoder_block_out_channels
        return super().arguments(config) | {"decoder_block_out_channels": None if widths is None else tuple(widths)}

    @property
    def patch_size(self) -> int:
        """Side of the patches: 2 for FLUX.2."""
        height, width = self.model.config.patch_size
        assert height == width, "pipelines know square patches alone"
        return int(height)

    @property
    def scaling(self) -> dict[str, Any]:
        """The batch norm's statistics, as Flux2Pipeline reads them: (patches - mean) / sqrt(variance + eps)."""
        statistics = self.model.bn
        std = torch.sqrt(in_float64(statistics.running_var) + self.model.config.batch_norm_eps)
        return dict.fromkeys(SCALING_FIELDS) | {
            "scaling_factor": 1.0,
            "latents_mean": statistics.running_mean.tolist(),
            "latents_std": std.tolist(),
            "patch_size": self.patch_size,
        }

    def set_statistics(self, *, mean: Tensor, variance: Tensor) -> None:
        """Replace what pipelines normalise by.

        Args:
            mean: Of the patches' channels, [c·p·p].
            variance: Of the same.
        """
        self.model.bn.running_mean.copy_(mean)
        self.model.bn.running_var.copy_(variance)

    def take_as_normalised(self) -> None:
        """Give patches a mean of 0 and a variance to which eps adds up to 1."""
        statistics = self.model.bn
        statistics.running_mean.zero_()
        statistics.running_var.fill_(1 - self.model.config.batch_norm_eps)
