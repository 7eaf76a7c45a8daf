"""Strips give the whole image's result: any architecture, size, budget and number of processes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ldm_vae.api import decode_latents, encode_images
from ldm_vae.models.exact import disable_exact_tiling, enable_exact_tiling, plan_of
from ldm_vae.models.exact.maps import RowMap, Tier
from ldm_vae.models.exact.networks import make_program
from ldm_vae.models.exact.statistics import ChannelStatistics
from ldm_vae.models.families import family_of
from ldm_vae.models.inference import InferenceAutoencoder
from ldm_vae.training.capacity import PeakMemory
from tests.launching import finish, run_launch, start_forked
from tests.models.exact.sharing import share_images
from tests.models.exact.strips import TIERS, gradient_picture, in_strips, lively, relative_error
from tests.tiny import tiny_autoencoder


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_strips_of_few_rows_give_the_whole_result(rows: int) -> None:
    """Also where strips begin at odd rows, and end within what an upsampling repeats or a stride skips."""
    autoencoder = lively(tiny_autoencoder(widths=[4, 8, 8], attention=[False, True, False]))
    image = gradient_picture(height=27, width=18)
    with torch.no_grad():
        moments = autoencoder.encoder(image)
        assert relative_error(in_strips(autoencoder.encoder, image, rows=rows), moments) < 1e-5
        decoded = autoencoder.decoder(moments[:, :4])
        assert relative_error(in_strips(autoencoder.decoder, moments[:, :4], rows=rows), decoded) < 1e-5


def test_pooled_variances_fail_that_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    """What others do: strips' variances are averaged, without the variance of the strips' means."""
    autoencoder = tiny_autoencoder()
    image = gradient_picture(height=64, width=32)
    with torch.no_grad():
        expected = autoencoder.encoder(image)
    right = ChannelStatistics.merge

    def pooled(self: ChannelStatistics, count: int, mean: Tensor, deviations: Tensor) -> None:
        before = self.deviations
        right(self, count, mean, deviations)
        self.deviations = before + deviations

    monkeypatch.setattr(ChannelStatistics, "merge", pooled)
    assert relative_error(in_strips(autoencoder.encoder, image, rows=8), expected) > 1e-2


def test_statistics_of_strips_with_a_large_offset() -> None:
    """E[x²] - E[x]² in float32 would lose everything here."""
    pixels = 1000 + torch.randn(1, 8, 96, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    statistics = ChannelStatistics(8, device=torch.device("cpu"))
    for strip in pixels.float().split(7, dim=2):
        statistics.add(strip.contiguous(memory_format=torch.channels_last))
    mean, variance = statistics.of_groups(nn.GroupNorm(2, 8))
    groups = pixels.float().double().view(2, -1)
    torch.testing.assert_close(mean.double().view(2, 4)[:, 0], groups.mean(1), rtol=3e-7, atol=0)
    torch.testing.assert_close(variance.double().view(2, 4)[:, 0], groups.var(1, correction=0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("tier", TIERS)
def test_rows_are_read_across_strips_and_let_go(tier: Tier) -> None:
    whole = (
        torch.arange(2 * 10 * 3, dtype=torch.float32).view(1, 2, 10, 3).contiguous(memory_format=torch.channels_last)
    )
    rows = RowMap((2, 10, 3), dtype=torch.float32, device=torch.device("cpu"), tier=tier)
    for strip in whole.split(4, dim=2):
        rows.write(strip)
    assert rows.read(2, 9).equal(whole[:, :, 2:9])
    rows.let_go(8)
    assert rows.read(8, 10).equal(whole[:, :, 8:10])
    with pytest.raises(AssertionError, match="let go"):
        rows.read(3, 5)


def test_budget_decides() -> None:
    autoencoder = enable_exact_tiling(tiny_autoencoder(), memory_gib=1)
    assert plan_of(autoencoder, half="encoder", height=64, width=64).layout is None
    told: list[str] = []
    enable_exact_tiling(autoencoder, memory_gib=0.003, tell=told.append)
    plan = plan_of(autoencoder, half="encoder", height=256, width=256)
    assert plan.layout is not None
    assert plan.peak_bytes <= 0.003 * 2**30 < plan.whole_bytes
    assert plan.kept_bytes > 0, "the maps that don't fit lie on the disk"
    (line,) = told
    *_, duration = line.split(", about ")
    assert line == f"encoder, 256 x 256: {plan}, about {duration}"
    assert duration.split()[1] in ("s", "min")
    with pytest.raises(
        ValueError, match=r"memory_gib: 512 x 512 takes at least [\d.e-]+ GiB .* the budget is 1e-05; give that much"
    ):
        plan_of(enable_exact_tiling(autoencoder, memory_gib=1e-5), half="encoder", height=512, width=512)


def test_the_budget_that_is_advised_is_enough() -> None:
    autoencoder = enable_exact_tiling(tiny_autoencoder(), memory_gib=1e-5)
    with pytest.raises(ValueError, match="at least") as error:
        plan_of(autoencoder, half="decoder", height=256, width=256)
    advised = float(str(error.value).split("at least ")[1].split()[0])
    enable_exact_tiling(autoencoder, memory_gib=advised)
    assert plan_of(autoencoder, half="decoder", height=256, width=256).layout is not None


def test_pipelines_of_the_autoencoder_are_exact_and_can_be_again_as_they_were() -> None:
    autoencoder = tiny_autoencoder(latent_channels=4)
    images = torch.cat([gradient_picture(height=64, width=48, seed=seed) for seed in range(2)])
    with torch.no_grad():
        expected = autoencoder.encode(images).latent_dist.mean
        decoded = autoencoder.decode(expected).sample
        enable_exact_tiling(autoencoder, memory_gib=3e-4)
        assert relative_error(autoencoder.encode(images).latent_dist.mean, expected) < 1e-5
        assert relative_error(autoencoder.decode(expected).sample, decoded) < 1e-5
        disable_exact_tiling(autoencoder)
        assert autoencoder.encode(images).latent_dist.mean.equal(expected)


def test_python_functions_take_a_bound_and_leave_the_model_as_it_was() -> None:
    autoencoder = tiny_autoencoder()
    pictures = 2 * torch.rand(1, 3, 64, 48, generator=torch.Generator().manual_seed(0)) - 1
    expected = encode_images(autoencoder, pictures)
    assert relative_error(encode_images(autoencoder, pictures, memory_gib=3e-4), expected) < 1e-5
    images = [decode_latents(autoencoder, expected, memory_gib=memory_gib)[0] for memory_gib in (None, 3e-4)]
    difference = np.asarray(images[0], dtype=int) - np.asarray(images[1], dtype=int)
    assert np.abs(difference).max() <= 1
    assert encode_images(autoencoder, pictures).equal(expected)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: enable_exact_tiling(tiny_autoencoder(), memory_gib=0), "memory_gib is 0; it must be positive"),
        (
            lambda: make_program(nn.Sequential()),
            "Sequential can't be run in strips; there are: Decoder, DecoderTiny, Encoder, EncoderTiny",
        ),
        (
            lambda: enable_exact_tiling(tiny_autoencoder(), memory_gib=3e-4).encode(
                gradient_picture(height=64, width=48).requires_grad_()
            ),
            "exact tiling gives no gradients",
        ),
    ],
)
def test_mistakes_are_one_line(act: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act()


@pytest.mark.processes
@pytest.mark.parametrize("num_processes", [2, 3])
def test_processes_share_an_image(tmp_path: Path, num_processes: int) -> None:
    run_launch(share_images, folder=tmp_path, num_processes=num_processes)


def encode_and_measure(memory_gib: float) -> None:
    """Print the peak memory, in GiB, that an encode takes beside the weights; no bound at 0."""
    autoencoder = family_of(tiny_autoencoder(widths=[16, 16, 16]))
    encoder = InferenceAutoencoder(autoencoder, bf16=False, memory_gib=memory_gib or None)
    image = torch.rand(1, 3, 768, 768)
    encoder.encode(image[:, :, :16, :16])
    memory = PeakMemory(torch.device("cpu"))
    held = memory.current
    encoder.encode(image)
    print((memory.peak - held) / 2**30)


@pytest.mark.skipif(sys.platform != "linux", reason="a process's peak memory is read from /proc")
def test_memory_stays_within_the_budget(tmp_path: Path) -> None:
    def peak(memory_gib: float) -> float:
        printed = tmp_path / f"{memory_gib}.txt"
        finish([start_forked(encode_and_measure, memory_gib, output=printed)], folder=tmp_path)
        return float(printed.read_text().splitlines()[-1])

    budget = 0.04
    assert peak(0) > 2.5 * budget
    assert peak(budget) < budget + 0.045  # what the libraries hold beside, whatever the size: 0.01 to 0.022 were seen
