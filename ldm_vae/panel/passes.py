"""One autoencoder's part of the panel on one batch of images."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor, nn

from ldm_vae.metrics.channels import outer_products
from ldm_vae.metrics.equivariance import squared_error, transforms
from ldm_vae.metrics.latents import LatentSummary
from ldm_vae.metrics.reconstruction import psnr
from ldm_vae.metrics.spectrum import cosine_power, spectrum_distance
from ldm_vae.models.inference import InferenceAutoencoder
from ldm_vae.panel.measures import SEGMENTS, SIGMAS
from ldm_vae.panel.sums import NOISE_SEED, Batch, PanelImages, Tally
from ldm_vae.system.float64 import in_float64
from ldm_vae.system.pixels import from_pixels, to_pixels
from ldm_vae.system.randomness import sample_rng

POOLED = 4
"""Side of the latents that classes are told apart by."""


class PanelPass:
    """Measures batches of images with an autoencoder whose latents' statistics are known."""

    def __init__(
        self, autoencoder: InferenceAutoencoder, summary: LatentSummary, tally: Tally, images: PanelImages
    ) -> None:
        self.autoencoder, self.tally, self.how = autoencoder, tally, images
        device = autoencoder.device
        self.shift = torch.tensor(summary.channel_mean, device=device)[:, None, None]
        self.std = torch.tensor(summary.channel_std, device=device)[:, None, None].clamp(min=1e-12)

    @torch.no_grad()
    def add(self, batch: Batch, *, image_std: float, points: set[int]) -> None:
        """Add a batch's sums to the tally, and the latents of those images that are in `points`."""
        images = batch.images.to(self.autoencoder.device)
        mean, std = self.autoencoder.encode(images)
        latents = (mean - self.shift) / self.std
        targets = self.how.dataset.targets(images)
        self._add_reconstructions(batch, targets, mean)
        self._add_equivariance(batch, images, mean)
        self._add_spectrum(batch, targets / image_std, latents)
        self.tally.add(batch, "outer", outer_products(latents))
        if std is not None:
            self.tally.add(batch, "log_std", in_float64(std / self.std).log().sum(dim=(0, 2, 3)))
        self.tally.add(batch, "positions", torch.tensor(latents[:, 0].numel()))
        pooled = nn.functional.adaptive_avg_pool2d(latents, min(POOLED, *latents.shape[-2:]))
        for row, index in enumerate(batch.indices):
            self.tally.features[index] = pooled[row].flatten().cpu()
            if index in points:
                self.tally.points[index] = latents[row].flatten().cpu()

    def _add_reconstructions(self, batch: Batch, targets: Tensor, mean: Tensor) -> None:
        clean = self.autoencoder.decode(mean)
        self.tally.add(batch, "images", torch.tensor(len(targets)))
        self._add_quality(batch, targets, clean, suffix="")
        noise = [sample_rng(index, seed=NOISE_SEED, stream="panel/noise") for index in batch.indices]
        drawn = np.stack([rng.standard_normal(mean.shape[1:], dtype=np.float32) for rng in noise])
        spread = torch.from_numpy(drawn).to(mean.device) * self.std
        for sigma in SIGMAS:
            self._add_quality(batch, targets, self.autoencoder.decode(mean + sigma * spread), suffix=f"_{sigma:g}")
        self._add_path(batch, mean, clean)

    def _add_quality(self, batch: Batch, targets: Tensor, decoded: Tensor, *, suffix: str) -> None:
        pixels, found = to_pixels(targets), to_pixels(decoded)
        self.tally.add(batch, f"psnr{suffix}", psnr(pixels, found).sum())
        if self.how.perceptual is not None:
            distance = self.how.perceptual(from_pixels(pixels), from_pixels(found))
            self.tally.add(batch, f"perceptual{suffix}", in_float64(distance).sum())

    def _add_path(self, batch: Batch, mean: Tensor, clean: Tensor) -> None:
        """Go from each even image of the batch to the next."""
        pairs = len(mean) // 2
        if pairs == 0:
            return
        first, last = mean[0 : 2 * pairs : 2], mean[1 : 2 * pairs : 2]
        between = [self.autoencoder.decode(torch.lerp(first, last, i / SEGMENTS)) for i in range(1, SEGMENTS)]
        stops = [clean[0 : 2 * pairs : 2], *between, clean[1 : 2 * pairs : 2]]
        stops = [from_pixels(to_pixels(stop)) for stop in stops]
        for before, after in itertools.pairwise(stops):
            distance = (
                (after - before).square().flatten(1).mean(1)
                if self.how.perceptual is None
                else self.how.perceptual(before, after)
            )
            self.tally.add(batch, "path", in_float64(distance).sum() * SEGMENTS**2)
        self.tally.add(batch, "segments", torch.tensor(pairs * SEGMENTS))

    def _add_equivariance(self, batch: Batch, images: Tensor, mean: Tensor) -> None:
        for transform in transforms(mean.shape[-1]):
            moved_images, moved_latents = transform.apply(images), transform.apply(mean).contiguous()
            encoded, _ = self.autoencoder.encode(moved_images.contiguous())
            error, size = squared_error((encoded - self.shift) / self.std, (moved_latents - self.shift) / self.std)
            wanted, found = self.how.dataset.targets(moved_images), self.autoencoder.decode(moved_latents)
            quality = psnr(to_pixels(wanted), to_pixels(found))
            for name, value in (("error", error), ("size", size), ("psnr", quality)):
                self.tally.add(batch, f"{transform.group}/{name}", value.sum())
            self.tally.add(batch, f"{transform.group}/count", torch.tensor(len(images)))

    def _add_spectrum(self, batch: Batch, targets: Tensor, latents: Tensor) -> None:
        power = cosine_power(latents)
        self.tally.add(batch, "power", power.sum(dim=0))
        self.tally.add(batch, "spectrum", spectrum_distance(latents, targets).sum())
