"""Metrics against plain formulas, and the same numbers however the images are dealt out."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.kid import poly_mmd

from ldm_vae.images.transforms import to_image
from ldm_vae.metrics.reconstruction import (
    LatentStatistics,
    ReconstructionMetrics,
    paired_kernel_distance,
    set_distances,
    ssim,
    to_pixels,
)


class MeanDistance(torch.nn.Module):
    def forward(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        return (images - reconstruction).abs().mean(dim=(1, 2, 3))


def make_batch(*, num_images: int, seed: int = 0, side: int = 16) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    images = normal(num_images, 3, side, side).clamp(-1, 1)
    error = normal(num_images, 1, 1, 1).exp() * 0.1  # images of very different quality
    mean = 5 + 3 * normal(num_images, 4, side // 4, side // 4)
    return images, images + error * normal(*images.shape), mean, normal(*mean.shape).exp() * 0.3


def test_summary_equals_plain_formulas() -> None:
    images, reconstruction, mean, std = make_batch(num_images=5)
    metrics = ReconstructionMetrics(perceptual=MeanDistance(), latent_channels=4)
    metrics.update(images, reconstruction, mean, std)
    summary = metrics.compute()

    def pixels(image: Tensor) -> Tensor:
        return ((image.clamp(-1, 1) + 1) / 2 * 255).round().double()

    error = (pixels(images) - pixels(reconstruction)).square().mean(dim=(1, 2, 3))
    assert summary.psnr == pytest.approx((10 * torch.log10(255**2 / error)).mean().item(), rel=1e-7)
    pooled_psnr = 10 * math.log10(255**2 / error.mean().item())
    assert abs(summary.psnr - pooled_psnr) > 1  # the mean over images is another number
    similarity = structural_similarity_index_measure(
        pixels(reconstruction) / 255, pixels(images) / 255, data_range=1.0
    )
    assert summary.ssim == pytest.approx(float(similarity), abs=1e-5)
    distance = (pixels(images) - pixels(reconstruction)).abs().mean() / 127.5
    assert summary.perceptual == pytest.approx(distance.item(), rel=1e-5)
    divergence = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean.double(), std.double()), torch.distributions.Normal(0.0, 1.0)
    )
    assert summary.kl == pytest.approx(divergence.sum().item() / images.numel(), rel=1e-9)
    assert summary.bits_per_dim == pytest.approx(summary.kl / math.log(2))
    assert summary.latents.channel_kl == pytest.approx(divergence.mean(dim=(0, 2, 3)).tolist(), rel=1e-9)


def test_latent_statistics_are_those_of_drawn_samples() -> None:
    _, _, mean, std = make_batch(num_images=8)
    mean[:, 1] += 2
    statistics = LatentStatistics(latent_channels=4)
    statistics.update(mean, std)
    summary = statistics.compute()
    samples = torch.cat([mean + std * torch.randn(mean.shape) for _ in range(2000)]).double()
    assert summary.std == pytest.approx(samples.std().item(), rel=2e-3)
    assert summary.mean == pytest.approx(samples.mean().item(), rel=2e-3)
    assert summary.channel_std == pytest.approx(samples.std(dim=(0, 2, 3)).tolist(), rel=5e-3)
    assert summary.scaling_factor == 1 / summary.std
    normalised = (samples - summary.mean) * summary.scaling_factor
    assert normalised.std().item() == pytest.approx(1, abs=2e-3)


def test_only_channels_whose_mean_varies_are_active() -> None:
    mean = torch.randn(6, 3, 4, 4)
    mean[:, 1] = 7 + 0.05 * mean[:, 1]  # a far but constant mean tells nothing
    mean[:, 2] *= 0.2
    statistics = LatentStatistics(latent_channels=3)
    statistics.update(mean, torch.full_like(mean, 0.5))
    assert statistics.compute().active_channels == 2


@pytest.mark.parametrize("sizes", [[7], [3, 4], [1, 0, 5, 1], [2, 2, 2, 1]])
def test_result_does_not_depend_on_how_images_are_dealt(sizes: list[int]) -> None:
    batch = make_batch(num_images=7)
    whole = ReconstructionMetrics(perceptual=MeanDistance(), latent_channels=4)
    for i in range(7):
        whole.update(*(tensor[i : i + 1] for tensor in batch))
    total = torch.zeros_like(whole.state())
    for part in zip(*(tensor.split(sizes) for tensor in batch), strict=True):
        process = ReconstructionMetrics(perceptual=MeanDistance(), latent_channels=4)
        process.update(*part)
        total += process.state()
    reduced = ReconstructionMetrics(perceptual=MeanDistance(), latent_channels=4)
    reduced.load_state(total)
    assert total.dtype == torch.float64
    torch.testing.assert_close(total, whole.state(), rtol=1e-7, atol=0)
    assert reduced.compute().psnr == pytest.approx(whole.compute().psnr, rel=1e-12)
    assert reduced.compute().latents.std == pytest.approx(whole.compute().latents.std, rel=1e-12)
    assert reduced.compute().num_images == 7


def test_no_image_at_all_is_an_error_and_not_a_nan() -> None:
    metrics = ReconstructionMetrics(perceptual=None, latent_channels=4)
    metrics.update(*make_batch(num_images=0))
    with pytest.raises(ValueError, match="no images"):
        metrics.compute()


def test_exact_reconstruction_has_a_finite_psnr_and_a_broken_one_shows() -> None:
    images, _, mean, std = make_batch(num_images=2)
    metrics = ReconstructionMetrics(perceptual=None, latent_channels=4)
    metrics.update(images, images, mean, std)
    summary = metrics.compute()
    assert summary.psnr == pytest.approx(10 * math.log10(255**2 * 3 * 16 * 16))
    assert summary.ssim == pytest.approx(1)
    assert summary.perceptual is None
    metrics.update(images, images * float("nan"), mean, std)
    assert math.isnan(metrics.compute().psnr)


def test_pixels_are_those_of_the_saved_picture() -> None:
    image = 1.5 * torch.randn(3, 64, 64)
    saved = np.asarray(to_image(image))
    assert (to_pixels(image).permute(1, 2, 0).numpy() == saved).all()


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (5, 64), (10, 10), (11, 11)])
def test_ssim_of_small_pictures(shape: tuple[int, int]) -> None:
    pixels = torch.randint(0, 60, (2, 3, *shape)).float()
    torch.testing.assert_close(ssim(pixels, pixels), torch.ones(2))
    assert (ssim(pixels, 255 - pixels) < 0.9).all()


def test_kernel_distance_of_reconstructions_is_unbiased() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(num_images: int) -> tuple[Tensor, Tensor]:
        features = torch.randn(num_images, 16, generator=generator, dtype=torch.float64)
        noise = torch.randn(num_images, 16, generator=generator, dtype=torch.float64)
        return features, 0.6 * features + 0.1 * noise

    expected = poly_mmd(draw(4000)[0], draw(4000)[1])  # independent, so the usual estimate is right
    pairs = [draw(30) for _ in range(400)]
    ours = torch.stack([paired_kernel_distance(*pair) for pair in pairs])
    usual = torch.stack([poly_mmd(*pair) for pair in pairs])
    standard_error = ours.std() / math.sqrt(400)
    assert (ours.mean() - expected).abs() < 3 * standard_error + 0.01
    assert expected - usual.mean() > 10 * standard_error  # what pairs do to it
    features = draw(30)[0]
    assert set_distances(features, features).kid == pytest.approx(0, abs=1e-12)


def test_set_distances_use_every_image_once_and_repeat() -> None:
    generator = torch.Generator().manual_seed(1)
    reference = torch.randn(50, 8, generator=generator)
    features = reference + 0.5
    distances = set_distances(reference, features, max_subset_size=20)
    assert (distances.kid_subsets, distances.kid_subset_size) == (3, 17)
    assert distances == set_distances(reference, features, max_subset_size=20)
    assert distances.fid == pytest.approx(8 * 0.5**2, rel=1e-4)  # equal covariances: the distance of the means
    assert set_distances(reference, features, with_fid=False).fid is None
    features[3] = float("nan")  # of a broken autoencoder, beside which others are measured
    assert math.isnan(set_distances(reference, features).kid)
