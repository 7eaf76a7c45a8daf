"""Settings of the autoencoder."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, field
from typing import ClassVar, Optional

from ldm_vae.config.names import BottleneckKind, Init, ModelFamily, Posterior
from ldm_vae.config.rules import Options, at_least, between, local_path, positive, require, source

MAX_CODES = 1 << 20


@dataclass(kw_only=True)
class ModelConfig(Options):
    """The autoencoder.

    With `pretrained` the architecture is the pretrained model's. Fields that describe one aren't read then, but for
    `latent_channels`, and `decoder_block_out_channels` of the family flux2; `family`, `in_channels` and `out_channels`
    have to be the model's.
    """

    section: ClassVar[str] = "model"

    pretrained: Optional[str] = source(None)
    """Folder, hub id or single LDM file of the autoencoder to start from. Without it training starts from scratch."""
    family: Optional[ModelFamily] = None
    """Class of diffusers: `kl` is AutoencoderKL, `flux2` AutoencoderKLFlux2 (FLUX.2's, with 32 channels whose 2x2
    patches are normalised by statistics measured at the export), `vq` VQModel (a codebook), `tiny` AutoencoderTiny
    (TAESD's architecture) and `dc` AutoencoderDC (SANA's). Without it a model from scratch is kl, and a pretrained one
    is of its own class."""
    bottleneck: Optional[BottleneckKind] = None
    """What makes the latent of the encoder's output: a normal posterior (`gaussian`, for kl and flux2), nothing
    (`deterministic`, for tiny and dc), the nearest of a codebook's learnt codes (`vq`) or a level for each channel
    (`fsq`, both for the family vq). Without it the family's first one is taken."""
    teacher: Optional[str] = source(None)
    """Folder, hub id or single file of a frozen autoencoder whose normalised latents the model learns to decode, or
    the folder of latents that `encode` wrote with it of the images in data.train. The model has the teacher's latent
    channels and factor, and any family but vq. Without it the model has latents of its own."""
    teach_encoder: bool = False
    """Train the encoder too, to make the teacher's latents. Without it a teacher has the decoder alone trained: the
    encoder isn't run, the export is for decoding, and whatever encodes refuses it."""
    latent_channels: Optional[int] = positive(None)
    """Channels of the latent. Without it they are 4 from scratch (32 for flux2 and dc), or those of the pretrained
    model. Another number keeps the channels of a pretrained kl or flux2 and adds new ones, or drops the last ones."""
    block_out_channels: list[int] = positive(factory=lambda: [128, 256, 512, 512])
    """Width of each resolution level; n levels give a spatial factor of 2^(n-1)."""
    decoder_block_out_channels: Optional[list[int]] = positive(None)
    """Width of each of the decoder's levels, full resolution first, for flux2, tiny and dc. Without it they are the
    encoder's. With a pretrained model of the family flux2 it gets a new decoder of these widths."""
    decoder_only: bool = False
    """Train the decoder and post_quant_conv alone. Encoder and quant_conv, and so all latents, keep every bit."""
    in_channels: int = between(1, 64, 3)
    """Channels of the images, which the model takes: 1 (grey), 3 (RGB) or 4 (RGBA) of pictures, any number of arrays
    and multispectral files, for which data.value_range is declared."""
    out_channels: Optional[int] = between(1, 64, None)
    """Channels that the model makes, for every family but dc. Without it they are those that it takes. Other ones are
    compared with those of the images' channels that data.target_channels names."""
    layers_per_block: int = positive(2)
    """Residual blocks of each level of the encoder. The decoder has one more, and as many for the families tiny and
    dc."""
    norm_num_groups: int = positive(32)
    """Groups of every group norm; the number must divide every width. The families tiny and dc have no group norms."""
    attention_levels: list[int] = field(default_factory=list)
    """Levels with self-attention after each residual block, as in the published f16 and f32; 0 is full resolution."""
    mid_block_add_attention: bool = True
    """Have self-attention in the middle block, as published."""
    use_quant_conv: bool = True
    """Have convolutions of 1x1 on both sides of the latent, as published. SD3 and FLUX have none."""
    codebook_size: int = positive(16384)
    """Number of codes of the bottleneck vq."""
    codebook_dim: Optional[int] = positive(None)
    """Channels of a code of the bottleneck vq. Without it they are latent_channels."""
    codebook_decay: float = between(0, 1, 0.99, ends="[)")
    """Part of a code, and of the figures of the codes' usage, that an update keeps."""
    fsq_levels: list[int] = at_least(2, factory=lambda: [8, 5, 5, 5])
    """Levels of each channel of the bottleneck fsq; their product is the number of codes."""
    pretrained_config: Optional[str] = local_path(None)
    """A config.json with what a single file in `pretrained` doesn't say. Folders have their own."""
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
        self._check_levels()
        self._check_family()
        self._check_teacher()
        require(
            math.prod(self.fsq_levels) <= MAX_CODES and len(self.fsq_levels) > 0,
            f"<model.fsq_levels> {self.fsq_levels} make {math.prod(self.fsq_levels):,} codes; it can't be more than "
            f"{MAX_CODES:,}",
        )

    def _check_levels(self) -> None:
        """Raise `FieldError` unless widths, groups and attention fit one another."""
        num_levels = len(self.block_out_channels)
        require(num_levels > 0, "<model.block_out_channels> is empty; it needs at least one width")
        for name in ("block_out_channels", "decoder_block_out_channels"):
            for width in getattr(self, name) or []:
                require(
                    width % self.norm_num_groups == 0 or self.family in ("tiny", "dc") or self.pretrained is not None,
                    f"<model.norm_num_groups> is {self.norm_num_groups}, which does not divide the width {width} in "
                    f"<model.{name}>",
                )
        if self.decoder_block_out_channels is not None and self.pretrained is None:
            require(
                len(self.decoder_block_out_channels) == num_levels,
                f"<model.decoder_block_out_channels> has {len(self.decoder_block_out_channels)} levels and "
                f"<model.block_out_channels> {num_levels}; they need the same number",
            )
        for level in self.attention_levels:
            require(
                0 <= level < num_levels,
                f"<model.attention_levels> names {level}; there are levels 0 to {num_levels - 1}",
            )

    def _check_family(self) -> None:
        """Raise `FieldError` where the family hasn't what is asked of it."""
        require(
            self.decoder_block_out_channels is None
            or self.pretrained is not None
            or self.family in ("flux2", "tiny", "dc"),
            f"<model.decoder_block_out_channels> is for the families flux2, tiny and dc; <model.family> is "
            f"{self.family or 'kl'}",
        )
        if self.pretrained is None:
            self._check_codes()
        require(
            not self.attention_levels or self.family != "tiny",
            f"<model.attention_levels> is {self.attention_levels}; the family tiny has no attention",
        )
        require(
            self.family != "dc" or self.made_channels == self.in_channels,
            f"<model.out_channels> is {self.out_channels}; the family dc makes as many as it takes, which are "
            f"<model.in_channels> {self.in_channels}",
        )

    def _check_teacher(self) -> None:
        """Raise `FieldError` where the model can't learn a teacher's latents."""
        require(
            self.teacher is not None or not self.teach_encoder,
            "<model.teach_encoder> trains an encoder to make the latents of <model.teacher>, which isn't named",
        )
        if self.teacher is None:
            return
        require(
            not (self.decoder_only and self.teach_encoder),
            "<model.decoder_only> keeps the encoder as it is, and <model.teach_encoder> trains it; leave one out",
        )
        require(
            self.family != "vq",
            "<model.teacher> is for families whose latents are free numbers; <model.family> is vq",
        )
        require(
            self.posterior == "learnt",
            f"<model.posterior> is {self.posterior}, but <model.teacher> teaches a posterior; leave one out",
        )
        require(
            self.pretrained is not None or not self.decoder_only,
            "<model.decoder_only> keeps the encoder of <model.pretrained>, which isn't named; leave it out: without "
            "<model.teach_encoder> the decoder is trained alone",
        )

    def _check_codes(self) -> None:
        described = type(self).__dataclass_fields__
        for name in ("codebook_size", "codebook_dim", "fsq_levels"):
            known = described[name]
            default = known.default if known.default_factory is MISSING else known.default_factory()
            require(
                self.family == "vq" or getattr(self, name) == default,
                f"<model.{name}> is {getattr(self, name)}, but the family {self.family or 'kl'} has no codes; leave "
                f"it out, or take <model.family> vq",
            )
        require(
            self.use_quant_conv or self.family != "vq",
            "<model.use_quant_conv> is false; the family vq always has these convolutions",
        )

    @property
    def trains_encoder(self) -> bool:
        """Whether the encoder is trained, not the decoder alone."""
        return not self.decoder_only and (self.teacher is None or self.teach_encoder)

    @property
    def made_channels(self) -> int:
        """Channels of the images that the model makes."""
        return self.in_channels if self.out_channels is None else self.out_channels

    @property
    def image_multiple(self) -> int:
        """Sides of images are multiples of this (for a model from scratch)."""
        return self.spatial_factor * (2 if self.family == "flux2" else 1)

    @property
    def spatial_factor(self) -> int:
        """Side of the square of image pixels that one latent pixel stands for, in a model from scratch."""
        return 2 ** (len(self.block_out_channels) - 1)
