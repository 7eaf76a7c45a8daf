"""VQModel: the autoencoder of VQGAN (Esser et al. 2021) and latent diffusion's VQ models."""

from __future__ import annotations

import math
from typing import Any, Self

from diffusers import VQModel
from torch import nn

from ldm_vae.config.model import ModelConfig
from ldm_vae.config.rules import require
from ldm_vae.models.bottlenecks.quantised import FiniteScalar, VectorQuantised, levels_of
from ldm_vae.models.families.family import DiffusersModel
from ldm_vae.models.families.kl import KL


class VQ(KL):
    """The architecture of AutoencoderKL around a codebook. Its latents are codes; `decode` takes the nearest."""

    name = "vq"
    summary = "An image autoencoder with a codebook"
    encode_call = "encode(images).latents"
    diffusers_class = VQModel
    bottlenecks = (VectorQuantised, FiniteScalar)
    architecture = (
        "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels", "layers_per_block",
        "act_fn", "latent_channels", "num_vq_embeddings", "vq_embed_dim", "norm_num_groups", "norm_type",
        "mid_block_add_attention",
    )  # fmt: skip
    tag = None
    has_single_file = True
    scalings = ()
    changes_channels = False

    @classmethod
    def of(cls, model: DiffusersModel) -> Self:
        """Wrap a model with its codebook."""
        if model.config.norm_type != "group":
            raise ValueError(f"norm_type is {model.config.norm_type}; autoencoders of norm_type group alone are known")
        return cls(model, VectorQuantised(model.quantize.embedding))

    @classmethod
    def arguments(cls, config: ModelConfig) -> dict[str, Any]:
        """The class's arguments for a model from scratch."""
        arguments = super().arguments(config)
        for name in ("use_quant_conv", "use_post_quant_conv"):
            arguments.pop(name)
        if config.bottleneck == "fsq":
            return arguments | {
                "num_vq_embeddings": math.prod(config.fsq_levels), "vq_embed_dim": len(config.fsq_levels),
            }  # fmt: skip
        return arguments | {
            "num_vq_embeddings": config.codebook_size,
            "vq_embed_dim": config.codebook_dim or arguments["latent_channels"],
        }

    def configure(self, config: ModelConfig) -> None:
        """Choose how the codebook is trained."""
        codebook, levels = self.model.quantize.embedding, config.fsq_levels
        own = None if config.pretrained is None else levels_of(codebook.weight.detach())
        require(
            config.pretrained is None or config.bottleneck != "fsq" or own == levels,
            f"<model.fsq_levels> are {levels}, but {config.pretrained} has "
            f"{f'levels {own}' if own else 'learnt codes'}",
        )
        if config.bottleneck == "fsq" or (config.bottleneck is None and own is not None):
            self.bottleneck = FiniteScalar(codebook, levels=own or levels, decay=config.codebook_decay)
        else:
            self.bottleneck = VectorQuantised(codebook, decay=config.codebook_decay)

    @property
    def latent_channels(self) -> int:
        """Channels of a code."""
        return self.model.quantize.embedding.embedding_dim

    @property
    def encoder_side(self) -> list[nn.Module]:
        """Encoder, quant_conv and codebook."""
        return [*super().encoder_side, self.model.quantize]
