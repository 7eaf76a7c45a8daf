"""How near reconstructions come to their pictures.

Every number is of pictures as a user gets them: clamped to [-1, 1] and rounded to 8 bits, or for images that are
numbers in a declared range not rounded. A sum doesn't depend on how
the images were cut into batches or dealt to processes, so neither does the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from ldm_vae.metrics.image_channels import ImageChannels, ImageChannelSummary
from ldm_vae.metrics.latents import LatentMetrics, LatentSummary
from ldm_vae.metrics.sums import Sums
from ldm_vae.system.float64 import in_float64
from ldm_vae.system.pixels import PICTURES, Span, as_pictures, from_pixels, to_levels, to_pixels

_LATENTS, _CHANNELS = "latents/", "channels/"


@dataclass(frozen=True, kw_only=True)
class ReconstructionSummary:
    """Means over images, and the statistics of their latents."""

    num_images: int
    num_nonfinite: int
    """Images whose reconstruction holds NaN or infinity; their figures, and so the means, aren't numbers."""
    psnr: float
    """Mean over images of each one's PSNR, in dB."""
    ssim: float
    """Mean over images of each one's structural similarity, at most 1."""
    perceptual: float | None
    """Mean over images of each one's perceptual distance; None without a perceptual network."""
    kl: float | None
    """Mean KL divergence in nats an image element, as in the training loss; None where latents have no posterior."""
    latents: LatentSummary
    codebook_size: int | None = None
    """Number of codes; None where latents aren't made of codes."""
    codebook_usage: float | None = None
    """Part of the codes that any image has."""
    codebook_perplexity: float | None = None
    """exp(entropy) of the codes over all places: so many codes, used alike, would tell as much."""
    code_bits_per_dim: float | None = None
    """Entropy of an image's codes, in bits an image element."""
    image_channels: ImageChannelSummary | None = None
    """Each channel of the images by itself; None where that wasn't asked for."""

    @property
    def active_channels(self) -> int:
        """Return how many latent channels are active."""
        return self.latents.active_channels

    @property
    def bits_per_dim(self) -> float | None:
        """Return the bits an image element that the posterior tells over the prior, or the codes' entropy."""
        return self.code_bits_per_dim if self.kl is None else self.kl / math.log(2)


class ReconstructionMetrics:
    """PSNR, SSIM, perceptual distance, KL divergence and latent statistics of an autoencoder over a data set.

    Args:
        perceptual: Network called as `perceptual(images, reconstruction)`, both [B, C, H, W] in [-1, 1], for
            distances [B]; or None.
        latent_channels: Channels of the latents.
        codebook_size: Number of codes that latents are made of; None where they aren't.
        image_channels: Channels of the images, for figures of each; None: there are none.
        rounded: Whether images are pictures of 8 bits, and not numbers in a declared range.
        span: The values of black and white in images and reconstructions.
        device: Where the sums are kept.
    """

    def __init__(
        self,
        *,
        perceptual: nn.Module | None,
        latent_channels: int,
        codebook_size: int | None = None,
        image_channels: int | None = None,
        rounded: bool = True,
        span: Span = PICTURES,
        device: torch.device | str = "cpu",
    ) -> None:
        self.perceptual = perceptual
        self.codebook_size = codebook_size
        self._span = span
        self._to_levels = to_pixels if rounded else to_levels
        self.channels = None if image_channels is None else ImageChannels(image_channels, device=device)
        self.latents = LatentMetrics(latent_channels=latent_channels, device=device)
        sizes = dict.fromkeys(("psnr", "ssim", "perceptual", "kl", "nonfinite"), 1)
        if codebook_size is not None:
            sizes |= {"codes": codebook_size, "code_share": 1}
        self._sums = Sums(sizes, device=device)

    @torch.no_grad()
    def update(
        self,
        images: Tensor,
        reconstruction: Tensor,
        mean: Tensor,
        std: Tensor | None,
        indices: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Add a batch, which may be empty.

        Args:
            images: Pictures [B, C, H, W] in [-1, 1], or the span.
            reconstruction: What the decoder made of them [B, C, H, W], about in [-1, 1], or the span.
            mean: Posterior means [B, c, h, w], or the latents themselves.
            std: Posterior standard deviations [B, c, h, w]; None where nothing is random.
            indices: Which codes the latents are, [B, 1, h, w]; None where they aren't made of codes.

        Returns:
            Each picture's values by name, [B]: those of the summary that are means over pictures.
        """
        if images.shape[0] == 0:
            return {}
        pixels, reconstructed = (
            self._to_levels(as_pictures(values, self._span)) for values in (images, reconstruction)
        )
        if self.channels is not None:
            self.channels.update(pixels, reconstructed)
        scores = {
            "psnr": psnr(pixels, reconstructed),
            "ssim": ssim(pixels, reconstructed),
            "nonfinite": ~reconstruction.isfinite().flatten(1).all(dim=1),
        }
        divergence = self.latents.update(mean, std)
        if divergence is not None:
            scores["kl"] = divergence / images[0].numel()
        if indices is not None and self.codebook_size is not None:
            self._sums.add("codes", torch.bincount(indices.flatten().long(), minlength=self.codebook_size))
            self._sums.add("code_share", torch.tensor(indices.numel() / images[0].numel()))
        if self.perceptual is not None:
            scores["perceptual"] = self.perceptual(from_pixels(pixels), from_pixels(reconstructed))
        for name, score in scores.items():
            self._sums.add(name, in_float64(score).sum())
        return {name: score for name, score in scores.items() if name != "nonfinite"}

    def state(self) -> dict[str, Tensor]:
        """Return all sums by name: add up those of all processes and `load_state` the totals."""
        parts = {"": self._sums.state(), _LATENTS: self.latents.state()}
        if self.channels is not None:
            parts[_CHANNELS] = self.channels.state()
        return {prefix + name: total for prefix, part in parts.items() for name, total in part.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Replace all sums by those of `state`."""
        self._sums.load_state({name: total for name, total in state.items() if "/" not in name})
        self.latents.load_state(_part(state, _LATENTS))
        if self.channels is not None:
            self.channels.load_state(_part(state, _CHANNELS))

    def compute(self) -> ReconstructionSummary:
        """Return the means over all that was added.

        Raises:
            ValueError: Nothing was added.
        """
        latents = self.latents.compute()

        def mean(name: str) -> float:
            return (self._sums[name] / latents.num_images).item()

        return ReconstructionSummary(
            num_images=latents.num_images,
            num_nonfinite=int(self._sums["nonfinite"]),
            psnr=mean("psnr"),
            ssim=mean("ssim"),
            perceptual=None if self.perceptual is None else mean("perceptual"),
            kl=None if latents.channel_kl is None else mean("kl"),
            latents=latents,
            image_channels=None if self.channels is None else self.channels.compute(),
            **self._codes(num_images=latents.num_images),
        )

    def _codes(self, *, num_images: int) -> dict[str, Any]:
        if self.codebook_size is None:
            return {}
        counts = self._sums["codes"]
        share = counts / counts.sum()
        entropy = -torch.xlogy(share, share).sum().item()
        codes_per_element = self._sums["code_share"].item() / num_images
        return {
            "codebook_size": self.codebook_size,
            "codebook_usage": in_float64(counts > 0).mean().item(),
            "codebook_perplexity": math.exp(entropy),
            "code_bits_per_dim": codes_per_element * entropy / math.log(2),
        }


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): total for name, total in state.items() if name.startswith(prefix)}


def psnr(pixels: Tensor, reconstructed: Tensor) -> Tensor:
    """Return each picture's PSNR in dB, [B] float64, of pixels 0 to 255 [B, C, H, W].

    An exact reconstruction counts as one that is off by 1 in a single element, so that means stay finite.
    """
    values = peak_signal_noise_ratio(
        in_float64(reconstructed), in_float64(pixels), data_range=255.0, reduction="none", dim=(1, 2, 3)
    )
    return values.clamp(max=10 * math.log10(255**2 * pixels[0].numel()))


def ssim(pixels: Tensor, reconstructed: Tensor) -> Tensor:
    """Return each picture's structural similarity, [B], of pixels 0 to 255 [B, C, H, W].

    Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity": Gaussian window of
    11 pixels and sigma 1.5, mean over channels and over the places where the whole window lies in the picture, as
    their own code and scikit-image have it. In a picture with a side below 11 the window is narrowed to fit.
    """
    side = min(pixels.shape[-2:])
    border = min(5, (side - 1) // 2)
    sigma = 1.5 if border == 5 else max(border / 3.5, 0.1)  # torchmetrics' window reaches int(3.5 sigma + 0.5) far
    scores = []
    for before, after in zip(pixels.div(255).split(1), reconstructed.div(255).split(1), strict=True):
        _, places = structural_similarity_index_measure(
            after, before, sigma=sigma, data_range=1.0, reduction="none", return_full_image=True
        )
        height, width = places.shape[-2:]
        scores.append(places[..., border : height - border, border : width - border].mean().reshape(1))
    return torch.cat(scores)
