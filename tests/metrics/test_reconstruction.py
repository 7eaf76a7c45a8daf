"""Metrics against plain formulas, and the same numbers however the images are dealt out."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from ldm_vae.metrics.reconstruction import ReconstructionMetrics, ssim
from tests.metrics.batches import make_batch


class MeanDistance(torch.nn.Module):
    def forward(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        return (images - reconstruction).abs().mean(dim=(1, 2, 3))


def similarity_of(one: Tensor, other: Tensor) -> float:
    """scikit-image's SSIM with Wang's settings, of pixels [C, H, W]; its mean is over whole windows."""
    return structural_similarity(
        one.permute(1, 2, 0).double().numpy(), other.permute(1, 2, 0).double().numpy(), channel_axis=2, data_range=255,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(11, 11), (12, 40), (96, 96)])
def test_ssim_is_that_of_scikit_image(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 3, *shape), generator=generator).float()
    error = 40 * torch.randn(pixels.shape, generator=generator)
    error[..., 2:-2, 2:-2] /= 10  # reflected borders would give another mean
    reconstructed = (pixels + error).round().clamp(0, 255)
    expected = [similarity_of(*pair) for pair in zip(pixels, reconstructed, strict=True)]
    torch.testing.assert_close(ssim(pixels, reconstructed).double(), torch.tensor(expected), rtol=0, atol=1e-5)


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
    similarities = [similarity_of(*pair) for pair in zip(pixels(images), pixels(reconstruction), strict=True)]
    assert summary.ssim == pytest.approx(np.mean(similarities), abs=1e-5)
    distance = (pixels(images) - pixels(reconstruction)).abs().mean() / 127.5
    assert summary.perceptual == pytest.approx(distance.item(), rel=1e-5)
    divergence = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean.double(), std.double()), torch.distributions.Normal(0.0, 1.0)
    )
    assert summary.kl == pytest.approx(divergence.sum().item() / images.numel(), rel=1e-9)
    assert summary.bits_per_dim == pytest.approx(summary.kl / math.log(2))
    assert summary.latents.channel_kl == pytest.approx(divergence.mean(dim=(0, 2, 3)).tolist(), rel=1e-9)


@pytest.mark.parametrize("sizes", [[7], [3, 4], [1, 0, 5, 1], [2, 2, 2, 1]])
def test_result_does_not_depend_on_how_images_are_dealt(sizes: list[int]) -> None:
    batch = make_batch(num_images=7)
    whole = ReconstructionMetrics(perceptual=MeanDistance(), latent_channels=4)
    for i in range(7):
        whole.update(*(tensor[i : i + 1] for tensor in batch))
    total = {name: torch.zeros_like(value) for name, value in whole.state().items()}
    for part in zip(*(tensor.split(sizes) for tensor in batch), strict=True):
        process = ReconstructionMetrics(perceptual=MeanDistance(), latent_channels=4)
        process.update(*part)
        total = {name: value + process.state()[name] for name, value in total.items()}
    reduced = ReconstructionMetrics(perceptual=MeanDistance(), latent_channels=4)
    reduced.load_state(total)
    assert {value.dtype for value in total.values()} == {torch.float64}
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
    assert summary.num_nonfinite == 0
    broken = images.clone()
    broken[1, 2, 3, 4] = float("nan")
    metrics.update(images, broken, mean, std)
    assert math.isnan(metrics.compute().psnr)
    broken[1, 2, 3, 4] = float("inf")  # whose pixel would be a plain white
    metrics.update(images, broken, mean, std)
    assert metrics.compute().num_nonfinite == 2


def test_sums_of_other_metrics_are_refused() -> None:
    metrics = ReconstructionMetrics(perceptual=None, latent_channels=4)
    state = metrics.state()
    for wrong in ({"psnr": state["psnr"]}, state | {"unknown": state["psnr"]}, state | {"psnr": torch.zeros(2)}):
        with pytest.raises(ValueError, match="can't replace sums"):
            metrics.load_state(wrong)


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (5, 64), (10, 10), (11, 11)])
def test_ssim_of_small_pictures(shape: tuple[int, int]) -> None:
    pixels = torch.randint(0, 60, (2, 3, *shape)).float()
    torch.testing.assert_close(ssim(pixels, pixels), torch.ones(2))
    assert (ssim(pixels, 255 - pixels) < 0.9).all()
