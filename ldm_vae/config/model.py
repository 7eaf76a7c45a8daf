"""Settings of the autoencoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, Optional

from ldm_vae.config.names import Init, Posterior
from ldm_vae.config.rules import Options, positive, require, source


@dataclass(kw_only=True)
class ModelConfig(Options):
    """The autoencoder.

    With `pretrained` the architecture is the pretrained model's; of the other fields only `in_channels`,
    `latent_channels` and `decoder_only` count.
    """

    section: ClassVar[str] = "model"

    pretrained: Optional[str] = source(None)
    """Folder, hub id or single LDM file of the autoencoder to start from. Without it training starts from scratch."""
    latent_channels: Optional[int] = positive(None)
    """Channels of the latent. Without it they are 4 from scratch, or those of the pretrained model. Another number
    keeps the pretrained model's channels and adds new ones, or drops the last ones."""
    block_out_channels: list[int] = positive(factory=lambda: [128, 256, 512, 512])
    """Width of each resolution level; n levels give a spatial factor of 2^(n-1)."""
    decoder_only: bool = False
    """Train the decoder and post_quant_conv alone. Encoder and quant_conv, and so all latents, keep every bit."""
    in_channels: Literal[1, 3, 4] = 3
    """Channels of the images: 1 (grey), 3 (RGB) or 4 (RGBA)."""
    layers_per_block: int = positive(2)
    """Residual blocks of each level of the encoder; the decoder has one more."""
    norm_num_groups: int = positive(32)
    """Groups of every group norm; the number must divide every width."""
    attention_levels: list[int] = field(default_factory=list)
    """Levels with self-attention after each residual block, as in the published f16 and f32; 0 is full resolution."""
    mid_block_add_attention: bool = True
    """Have self-attention in the middle block, as published."""
    use_quant_conv: bool = True
    """Have convolutions of 1x1 on both sides of the latent, as published. SD3 and FLUX have none."""
    init: Init = "torch"
    """First weights of a model from scratch: those of torch, or `quiet` ones, which are scaled by fan-in, make every
    residual block the identity, and the posterior sharp."""
    posterior: Posterior = "learnt"
    """Standard deviation of the posterior in training: `learnt`; `fixed` at posterior_std for all images, which the
    exported model then gives too; `floor`, learnt but never below posterior_std, which the exported model doesn't
    keep to, with the same means."""
    posterior_std: float = positive(0.1)
    """Standard deviation of a `fixed` posterior, and the least one of a `floor`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.block_out_channels) > 0, "<model.block_out_channels> is empty; it needs at least one width")
        for width in self.block_out_channels:
            require(
                width % self.norm_num_groups == 0,
                f"<model.norm_num_groups> is {self.norm_num_groups}, which does not divide the width {width} in "
                f"<model.block_out_channels>",
            )
        for level in self.attention_levels:
            require(
                0 <= level < len(self.block_out_channels),
                f"<model.attention_levels> names {level}; there are levels 0 to {len(self.block_out_channels) - 1}",
            )

    @property
    def spatial_factor(self) -> int:
        """Side of the square of image pixels that one latent pixel stands for, in a model from scratch."""
        return 2 ** (len(self.block_out_channels) - 1)
