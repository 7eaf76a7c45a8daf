"""An autoencoder for training: whatever the loss needs of it is computed in one forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from ldm_vae.models.blocks import speed_up_blocks
from ldm_vae.models.bottlenecks.bottleneck import Latent
from ldm_vae.models.families.family import Family
from ldm_vae.models.interventions import Transform
from ldm_vae.models.teacher import Teacher
from ldm_vae.system.pixels import chosen_channels

Draws: TypeAlias = Mapping[str, Tensor | float]
"""What was drawn at random for a micro-batch beside its posterior noise, by name. Tensors have a row for each image.
Numbers decide on shapes, and so are known without asking the device."""

Intervention: TypeAlias = Callable[[Tensor, Tensor, Draws], tuple[Tensor, Tensor]]
"""Changes the latents that are decoded and, in the same way, the images that the reconstruction is compared with. It
is called with (z, images, draws) and returns (z', images'). It depends on its arguments alone: whatever is random is
in `draws`, which come with the batch, as functions of (seed, k), or of (seed, step) where they decide on a shape."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Images and latents transformed alike, beside the ordinary forward."""

    images: Tensor
    """T x, [B, C, H', W']."""
    mean: Tensor
    """T E(x), the transformed means, [B, c, h', w']."""
    reconstruction: Tensor | None
    """D(T z), [B, C, H', W'], float32, part of the graph; None where it isn't asked for."""
    mean_of_images: Tensor | None
    """E(T x), the means of the transformed images, [B, c, h', w']; None where it isn't asked for."""


@dataclass(frozen=True, kw_only=True)
class PairRules:
    """Which parts of a `Pair` are computed, in updates that have a `pair_scale`."""

    decode: bool = False
    """Whether transformed latents are decoded."""
    encode: bool = False
    """Whether transformed images are encoded."""


class EncoderEnd(NamedTuple):
    """What the gradients at the encoder's last layer follow from."""

    features: Tensor
    """The layer's input, [B, width, h, w], detached."""
    hidden: Tensor
    """Its output, which the bottleneck takes, detached."""
    decoded: Tensor
    """z as the decoder alone takes it, part of the graph, which keeps its gradient."""


class TrainableOutput(NamedTuple):
    """What the step needs of one forward."""

    reconstruction: Tensor
    """The decoder's images, [B, C, H, W], float32."""
    images: Tensor
    """Images to compare the reconstruction with, [B, C, H, W]: those that were encoded, as interventions left them, in
    the channels that the model makes."""
    latent: Latent
    """What the bottleneck made of the encoded images."""
    likelihood_logvar: Tensor
    """The learnt s, a scalar that is part of the graph."""
    features: Tensor
    """Input of the last convolution, [B, width, H, W], detached."""
    pair: Pair | None = None
    """Images and latents transformed alike; None in updates without them."""
    encoder_end: EncoderEnd | None = None
    """What an alignment is balanced by; None where nothing is aligned."""


class TrainableAutoencoder(nn.Module):
    """The one module that DDP wraps: whatever the autoencoder's loss trains is a parameter of it.

    Args:
        family: The autoencoder.
        decoder_only: Whether encoder and quant_conv stay as they are.
        learn_logvar: Whether the log-variance s of the likelihood is trained.
        logvar_init: The first value of s.
        term_networks: Networks that terms of the objective train, by the terms' names.
        interventions: They run one after the other in the forward of every batch that comes with draws.
        pair: What is computed of images and latents transformed alike, in the same forward.
        teacher: Whose latents are decoded in place of the family's own; None: its own are decoded.
        teach_encoder: Whether the encoder learns to make the teacher's latents. Otherwise it isn't run beside one.
        aligned: Whether an alignment of the latents is balanced at the encoder's last layer.
        target_channels: Channels of the images that the model makes, in its order; none: all of them.
    """

    def __init__(
        self,
        family: Family,
        *,
        decoder_only: bool,
        learn_logvar: bool,
        logvar_init: float,
        term_networks: Mapping[str, nn.Module] | None = None,
        interventions: Sequence[Intervention] = (),
        pair: PairRules | None = None,
        teacher: Teacher | None = None,
        teach_encoder: bool = False,
        aligned: bool = False,
        target_channels: Sequence[int] = (),
    ):
        super().__init__()
        self.family = family
        self.autoencoder: nn.Module = family.model
        self.decoder_only = decoder_only
        self.trains_encoder = not decoder_only and (teacher is None or teach_encoder)
        self.likelihood_logvar = nn.Parameter(torch.tensor(logvar_init), requires_grad=learn_logvar)
        self.term_networks = nn.ModuleDict(dict(term_networks or {}))
        self.interventions = interventions
        self.pair_rules = pair or PairRules()
        self.teacher = teacher
        self.aligned = aligned
        self.target_channels = tuple(target_channels)
        if not self.trains_encoder:
            for module in family.encoder_side:
                module.requires_grad_(False)
        speed_up_blocks(family.model)
        self.encode_features: Callable[[Tensor], Tensor] = family.encode_features
        self.decode_features: Callable[[Tensor], Tensor] = family.decode_features

    @property
    def last_layer(self) -> nn.Conv2d:
        """The decoder's last convolution, at whose weight W the adaptive weight is measured."""
        return self.family.last_layer

    def forward(
        self,
        images: Tensor,
        noise: Tensor,
        draws: Draws | None = None,
        stored: Mapping[str, Tensor] | None = None,
    ) -> TrainableOutput:
        """Encode, sample the posterior with `noise`, intervene where there are `draws`, and decode.

        Args:
            images: [B, C, H, W] in [-1, 1].
            noise: [B, c, h, w], standard normal.
            draws: What the interventions take.
            stored: The teacher's latents, where it is one of stored latents.
        """
        latent, last_layer = self._latent(images, noise, stored or {})
        pair = self._pair(images, latent, draws or {})
        z, encoder_end = latent.z, None
        if last_layer is not None:
            features, hidden = last_layer
            z = z.view_as(z)  # after the pair's use of z: gradients are added up in that order
            if z.requires_grad:
                z.retain_grad()
            encoder_end = EncoderEnd(features=features.detach(), hidden=hidden.detach(), decoded=z)
        for intervention in self.interventions if draws else ():
            z, images = intervention(z, images, draws or {})
        last_features = self.decode_features(z)
        return TrainableOutput(
            reconstruction=self.family.head(last_features),
            images=self.targets(images),
            latent=latent,
            likelihood_logvar=self.likelihood_logvar.clone(),
            features=last_features.detach(),
            pair=pair,
            encoder_end=encoder_end,
        )

    def targets(self, images: Tensor) -> Tensor:
        """Return of images that are encoded, [B, C, H, W], the channels that the model makes."""
        return chosen_channels(images, self.target_channels)

    def _latent(
        self, images: Tensor, noise: Tensor, stored: Mapping[str, Tensor]
    ) -> tuple[Latent, tuple[Tensor, Tensor] | None]:
        """Return the latent to decode, and the last layer's input and output where an alignment asks for them."""
        if self.teacher is not None and not self.trains_encoder:
            return self.teacher.latent(images, noise, stored), None
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_encoder):
            features, hidden = self._encode(images)
            latent = self.family.bottleneck(hidden, noise)
        if self.teacher is not None:
            latent = self.teacher.teach(latent, images, noise, stored)
        return latent, None if features is None else (features, hidden)

    def _encode(self, images: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return the encoder's output, and before it the last layer's input where an alignment asks for it."""
        if not self.aligned:
            return None, self.family.encode(images)
        features = self.encode_features(images)
        return features, self.family.encode_head(features)

    def _pair(self, images: Tensor, latent: Latent, draws: Draws) -> Pair | None:
        """Transform images and latents alike, where it is due, and run on them what the rules ask for."""
        transform = Transform.of(draws, scale="pair_scale", factor=self.family.spatial_factor)
        if transform is None or not (self.pair_rules.decode or self.pair_rules.encode):
            return None
        moved = transform.of_images(images)
        reconstruction = mean_of_images = None
        if self.pair_rules.decode:
            reconstruction = self.family.head(self.decode_features(transform.of_latents(latent.z)))
        if self.pair_rules.encode:
            mean_of_images = self.family.bottleneck(self._encode(moved)[1]).mean
        return Pair(
            images=self.targets(moved),
            mean=transform.of_latents(latent.mean),
            reconstruction=reconstruction,
            mean_of_images=mean_of_images,
        )

    def compile_networks(self) -> None:
        """Compile encoder and decoder, and a teacher's encoder, in place; names and weights stay as they are."""
        if self.aligned:
            self.encode_features = torch.compile(self.encode_features)
        else:
            self.family.compile_encoder()
        self.decode_features = torch.compile(self.decode_features)
        if self.teacher is not None:
            self.teacher.compile_networks()
