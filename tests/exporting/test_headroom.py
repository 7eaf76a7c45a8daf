"""Activations against float16's limit, on a network that is made to overflow by an exact change of scale."""

import copy

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ldm_vae.exporting.headroom import HalfPrecisionError, PrecisionReport, fit_float16, measure_precision
from ldm_vae.models.families import family_of
from ldm_vae.models.rescaling import FLOAT16_LIMIT, MARGIN, rescale_activations
from ldm_vae.models.rescaling import _divide_stream as divide_stream
from tests.tiny import tiny_autoencoder, tiny_family


@pytest.fixture
def autoencoder() -> AutoencoderKL:
    return tiny_autoencoder(attention=(False, True))


@pytest.fixture
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1 for _ in range(2)]


def test_magnitudes_and_errors_are_those_of_the_layers(autoencoder: AutoencoderKL, batches: list[Tensor]) -> None:
    report = measure_precision(family_of(autoencoder), batches)
    with torch.no_grad():
        images = torch.cat(batches)
        first = autoencoder.encoder.conv_in(images)
        latents = autoencoder.encode(images).latent_dist.mean
        residual = autoencoder.decoder.mid_block(autoencoder.decoder.conv_in(autoencoder.post_quant_conv(latents)))
        half = copy.deepcopy(autoencoder).half()
        reconstruction = autoencoder.decode(latents).sample
        half_latents = half.encode(images.half()).latent_dist.mean
        error = (half.decode(half_latents).sample.float() - reconstruction).abs().max().item() * 127.5
    assert report.num_images == 4
    assert report.magnitudes["encoder.conv_in"] == pytest.approx(first.abs().max().item(), rel=1e-5)
    last = report.magnitudes["decoder.mid_block.resnets.1"]
    assert last == pytest.approx(residual.abs().max().item(), rel=1e-4)
    assert report.magnitudes["decoder.conv_out"] == pytest.approx(reconstruction.abs().max().item(), rel=1e-4)
    assert report.errors["float16"].max_error == pytest.approx(error, rel=0.2)  # half's rounding, batch by batch
    assert report.errors["float16"].psnr > report.errors["bfloat16"].psnr
    assert report.float16_is_safe


def test_overflow_is_seen_and_repaired(autoencoder: AutoencoderKL, batches: list[Tensor]) -> None:
    overflowing = copy.deepcopy(autoencoder)
    divide_stream(overflowing.encoder, 2.0**-15)
    divide_stream(overflowing.decoder, 2.0**-16)
    for resnet in (overflowing.decoder.up_blocks[0].resnets[0], overflowing.encoder.down_blocks[0].resnets[0]):
        resnet.conv1.weight.data *= 2.0**18
        resnet.conv1.bias.data *= 2.0**18
    report = measure_precision(family_of(overflowing), batches)
    assert report.largest("decoder")[1] > FLOAT16_LIMIT
    assert not report.errors["float16"].finite
    assert report.errors["bfloat16"].finite
    assert not report.float16_is_safe

    repaired = rescale_activations(family_of(overflowing), report.magnitudes)
    assert repaired is not None
    after = measure_precision(repaired, batches)
    assert max(after.magnitudes.values()) * MARGIN <= FLOAT16_LIMIT
    assert after.float16_is_safe
    with torch.no_grad():
        torch.testing.assert_close(
            repaired.model(batches[0]).sample, overflowing(batches[0]).sample, rtol=0, atol=1e-5
        )


def test_a_network_that_fits_is_left_alone(autoencoder: AutoencoderKL, batches: list[Tensor]) -> None:
    report = measure_precision(family_of(autoencoder), batches)
    assert rescale_activations(family_of(autoencoder), report.magnitudes) is None


def test_what_no_norm_follows_cannot_be_repaired(autoencoder: AutoencoderKL, batches: list[Tensor]) -> None:
    autoencoder.decoder.conv_out.weight.data *= 1e6
    report = measure_precision(family_of(autoencoder), batches)
    assert report.largest("decoder")[0] == "decoder.conv_out"
    assert not report.float16_is_safe
    assert rescale_activations(family_of(autoencoder), report.magnitudes) is None


def test_other_codes_are_no_matter_of_room(batches: list[Tensor]) -> None:
    """Half way between two codes rounding decides, which is seen in the pictures, though no activation is large."""
    family = tiny_family(family="vq", codebook_size=2)
    family.model.quantize.embedding.weight.data = torch.tensor([[0.5], [1.5]]).expand(2, 4).clone()
    family.model.quant_conv.weight.data *= 1e-3
    family.model.quant_conv.bias.data.fill_(1.0)
    family.model.decoder.conv_out.weight.data *= 10
    _, report, told = fit_float16(family, batches, repair=True)
    assert report.float16_has_room
    assert "dB from float32's. Rounded, some places take another code. No activation is too large" in told


@pytest.mark.parametrize(
    ("magnitude", "psnr", "finite", "reason"),
    [
        (16_000.0, 60.0, True, None),
        (17_000.0, 60.0, True, "decoder.conv_in reaches 1.7e+04 of 65504"),  # other pictures reach further
        (100.0, 47.0, True, "its reconstructions are at 47.0 dB from float32's"),  # more than one level of 255
        (100.0, 49.0, True, None),
        (100.0, 60.0, False, "its reconstructions aren't finite"),
    ],
)
def test_float16_is_safe_where_nothing_speaks_against_it(
    magnitude: float, psnr: float, finite: bool, reason: str | None
) -> None:
    error = HalfPrecisionError(finite=finite, psnr=psnr, max_error=1.0, latent_error=0.0)
    magnitudes = {"encoder.conv_in": 1.0, "decoder.conv_in": magnitude, "decoder.conv_out": 2.0}
    report = PrecisionReport(num_images=1, device="cpu", magnitudes=magnitudes, errors={"float16": error})
    assert report.float16_is_safe == (reason is None)
    if reason is not None:
        assert report.why_float16_is_unsafe() == reason
