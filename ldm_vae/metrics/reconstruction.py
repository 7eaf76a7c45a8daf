"""How good a reconstruction is and what the latents look like, as float64 sums that add up over processes.

Every number is of pictures as a user gets them: clamped to [-1, 1] and rounded to 8 bits. A sum doesn't know how the
images were cut into batches or dealt to processes, so neither does the result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_kernel

ACTIVE_VARIANCE = 0.01
"""A latent channel is active where the posterior mean's variance over the data exceeds this (Burda et al. 2016,
"Importance Weighted Autoencoders", section 4.3). The prior's variance is 1: below it the channel carries no more than
the prior, so the decoder learns nothing of the image from it."""


@dataclass(frozen=True, kw_only=True)
class LatentSummary:
    """Statistics of the latents z ~ N(mean, std^2) over a data set; lists hold one number a channel."""

    num_images: int
    num_positions: int
    """Latent pixels, over all images."""
    mean: float
    std: float
    """Of all elements about their common mean."""
    channel_mean: list[float]
    channel_std: list[float]
    channel_kl: list[float]
    """KL divergence from N(0, 1), nats a latent element."""
    channel_mean_variance: list[float]
    """Variance of the posterior's mean over images and positions."""

    @property
    def scaling_factor(self) -> float:
        """1/std: z * scaling_factor (or (z - mean) * scaling_factor) has unit standard deviation."""
        return 1 / self.std

    @property
    def active_channels(self) -> int:
        """Channels whose `channel_mean_variance` exceeds `ACTIVE_VARIANCE`."""
        return sum(variance > ACTIVE_VARIANCE for variance in self.channel_mean_variance)


class LatentStatistics:
    """Sums of posterior moments, from which the statistics of samples follow without drawing any:
    Var z = E[mean^2 + std^2] - (E mean)^2."""

    def __init__(self, *, latent_channels: int, device: torch.device | str = "cpu") -> None:
        self.latent_channels = latent_channels
        self.device = torch.device(device)
        self._counts = torch.zeros(2, dtype=torch.float64, device=self.device)  # images, positions
        # A row each of mean, mean^2, std^2 and KL divergence.
        self._sums = torch.zeros(4, latent_channels, dtype=torch.float64, device=self.device)

    @torch.no_grad()
    def update(self, mean: Tensor, std: Tensor) -> Tensor:
        """Add the posteriors of a batch, both [B, c, h, w], and return each one's KL divergence, [B] nats."""
        mean, std = mean.to(self.device).double(), std.to(self.device).double()
        kl = (mean.square() + std.square() - 1) / 2 - std.log()
        batch, _, height, width = mean.shape
        self._counts += torch.tensor([batch, batch * height * width], dtype=torch.float64, device=self.device)
        self._sums += torch.stack([m.sum(dim=(0, 2, 3)) for m in (mean, mean.square(), std.square(), kl)])
        return kl.sum(dim=(1, 2, 3))

    def state(self) -> Tensor:
        """All sums in one float64 vector: add the vectors of all processes and `load_state` the total."""
        return torch.cat([self._counts, self._sums.flatten()])

    def load_state(self, state: Tensor) -> None:
        """Take over the sums of `state`, whatever was held before."""
        assert state.numel() == 2 + 4 * self.latent_channels
        state = state.to(self.device).double()
        self._counts = state[:2].clone()
        self._sums = state[2:].reshape(4, self.latent_channels).clone()

    def compute(self) -> LatentSummary:
        """Return the statistics of all that was added; `ValueError` where nothing was."""
        num_images, num_positions = (int(count) for count in self._counts)
        if num_images == 0:
            raise ValueError("no images to measure latents on: every one was unreadable, or there were none")
        mean, mean_square, variance, kl = self._sums.cpu() / num_positions
        channel_variance = mean_square + variance - mean.square()
        pooled_variance = (mean_square + variance).mean() - mean.mean().square()
        return LatentSummary(
            num_images=num_images,
            num_positions=num_positions,
            mean=mean.mean().item(),
            std=pooled_variance.sqrt().item(),
            channel_mean=mean.tolist(),
            channel_std=channel_variance.sqrt().tolist(),
            channel_kl=kl.tolist(),
            channel_mean_variance=(mean_square - mean.square()).clamp(min=0).tolist(),
        )


@dataclass(frozen=True, kw_only=True)
class ReconstructionSummary:
    """Means over images, and the statistics of their latents."""

    num_images: int
    psnr: float
    """Mean over images of each one's PSNR, dB."""
    ssim: float
    perceptual: float | None
    """None without a perceptual network."""
    kl: float
    """Mean KL divergence in nats an image element, as in the training loss; /ln 2: bits a dimension."""
    latents: LatentSummary

    @property
    def active_channels(self) -> int:
        return self.latents.active_channels

    @property
    def bits_per_dim(self) -> float:
        """Bits an image element that the posterior tells over the prior."""
        return self.kl / math.log(2)


class ReconstructionMetrics:
    """PSNR, SSIM, perceptual distance, KL divergence and latent statistics of an autoencoder over a data set.

    Args:
        perceptual: network called as `perceptual(images, reconstruction)`, both [-1, 1], for distances [B]; or None.
        latent_channels: channels of the latents.
        device: where the sums are held.
    """

    def __init__(
        self, *, perceptual: nn.Module | None, latent_channels: int, device: torch.device | str = "cpu"
    ) -> None:
        self.perceptual = perceptual
        self.device = torch.device(device)
        self.latents = LatentStatistics(latent_channels=latent_channels, device=device)
        self._sums = torch.zeros(4, dtype=torch.float64, device=self.device)  # psnr, ssim, perceptual, kl

    @torch.no_grad()
    def update(self, images: Tensor, reconstruction: Tensor, mean: Tensor, std: Tensor) -> None:
        """Add a batch, which may be empty: pictures [B, C, H, W] in [-1, 1], posterior moments [B, c, h, w]."""
        if images.shape[0] == 0:
            return
        pixels, reconstructed = to_pixels(images), to_pixels(reconstruction)
        kl = self.latents.update(mean, std) / images[0].numel()
        distance = torch.zeros(1, device=self.device)
        if self.perceptual is not None:
            distance = self.perceptual(pixels / 127.5 - 1, reconstructed / 127.5 - 1)
        scores = (psnr(pixels, reconstructed), ssim(pixels, reconstructed), distance, kl)
        self._sums += torch.stack([score.to(self.device).double().sum() for score in scores])

    def state(self) -> Tensor:
        """All sums in one float64 vector: add the vectors of all processes and `load_state` the total."""
        return torch.cat([self._sums, self.latents.state()])

    def load_state(self, state: Tensor) -> None:
        """Take over the sums of `state`, whatever was held before."""
        self._sums = state[:4].to(self.device).double()
        self.latents.load_state(state[4:])

    def compute(self) -> ReconstructionSummary:
        """Return the means over all that was added; `ValueError` where nothing was."""
        latents = self.latents.compute()
        psnr_mean, ssim_mean, perceptual, kl = (self._sums / latents.num_images).tolist()
        return ReconstructionSummary(
            num_images=latents.num_images,
            psnr=psnr_mean,
            ssim=ssim_mean,
            perceptual=None if self.perceptual is None else perceptual,
            kl=kl,
            latents=latents,
        )


def to_pixels(images: Tensor) -> Tensor:
    """Return the 8-bit pixels, as whole numbers 0 to 255 in float32, of pictures in [-1, 1]. NaN stays NaN."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255)


def psnr(pixels: Tensor, reconstructed: Tensor) -> Tensor:
    """Return each picture's PSNR in dB, [B] float64, of pixels 0 to 255 [B, C, H, W].

    An exact reconstruction counts as one that is off by 1 in a single element, so that means stay finite.
    """
    values = peak_signal_noise_ratio(
        reconstructed.double(), pixels.double(), data_range=255.0, reduction="none", dim=(1, 2, 3)
    )
    return values.clamp(max=10 * math.log10(255**2 * pixels[0].numel()))


def ssim(pixels: Tensor, reconstructed: Tensor) -> Tensor:
    """Return each picture's structural similarity, [B], of pixels 0 to 255 [B, C, H, W] (Wang et al. 2004).

    Gaussian window of 11 pixels and sigma 1.5, mean over channels; in a picture with a side below 11 the window is
    narrowed to fit.
    """
    side = min(pixels.shape[-2:])
    sigma = 1.5 if side >= 11 else max((side - 1) // 2 / 3.5, 0.1)  # torchmetrics' window: int(3.5 sigma + 0.5) a side
    scores = []
    for before, after in zip(pixels.div(255).split(1), reconstructed.div(255).split(1), strict=True):
        score = structural_similarity_index_measure(after, before, sigma=sigma, data_range=1.0, reduction="none")
        assert isinstance(score, Tensor)
        scores.append(score.reshape(1))
    return torch.cat(scores)


@dataclass(frozen=True, kw_only=True)
class SetDistances:
    """Distances between a set of pictures and the set of their reconstructions, in a network's features."""

    kid: float
    """Squared maximum mean discrepancy with the cubic polynomial kernel (Binkowski et al. 2018); being unbiased, it
    may be slightly negative."""
    kid_std: float
    """Standard deviation over the subsets; 0 with a single one."""
    kid_subsets: int
    kid_subset_size: int
    fid: float | None
    """Frechet distance between two Gaussians (Heusel et al. 2017); biased upwards by few images."""


def set_distances(
    reference: Tensor, features: Tensor, *, with_fid: bool = True, max_subset_size: int = 1000, seed: int = 0
) -> SetDistances:
    """Return KID and, `with_fid`, FID between the features of pictures and of their reconstructions, [n, d] in the
    same order, n at least 2. Every image is in one of the KID's subsets, which are drawn by `seed`."""
    num_images, num_features = reference.shape
    reference, features = reference.double(), features.double()
    if not features.isfinite().all():
        with_fid = False  # there are no eigenvalues; the KID becomes NaN
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(seed)).to(reference.device)
    subsets = order.tensor_split(math.ceil(num_images / max_subset_size))
    kid = torch.stack([paired_kernel_distance(reference[subset], features[subset]) for subset in subsets])
    fid = None
    if with_fid:
        identity = nn.Identity()
        identity.num_features = num_features  # type: ignore[assignment]
        fid = FrechetInceptionDistance(feature=identity).to(reference.device)
        fid.update(reference, real=True)
        fid.update(features, real=False)
    return SetDistances(
        kid=kid.mean().item(),
        kid_std=kid.std(unbiased=False).item(),
        kid_subsets=len(subsets),
        kid_subset_size=len(subsets[0]),
        fid=None if fid is None else fid.compute().item(),
    )


def paired_kernel_distance(reference: Tensor, features: Tensor) -> Tensor:
    """Return the unbiased squared MMD of paired features, both [n, d] (Gretton et al. 2012, equation 4).

    The pairs i = j are left out of the cross term too. A reconstruction is no independent draw: it is close to its own
    original, and with those n terms the usual estimate falls far below zero in small sets.
    """
    kernels = poly_kernel(reference, reference) + poly_kernel(features, features)
    kernels -= 2 * poly_kernel(reference, features)
    num_images = len(reference)
    return (kernels.sum() - kernels.trace()) / (num_images * (num_images - 1))
