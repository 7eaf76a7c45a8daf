"""Figures of single images, and the pictures that are kept of them: which, and with which pixels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from ldm_vae.config.commands.evaluate import EvaluateOptions
from ldm_vae.evaluation.evaluate import evaluate
from ldm_vae.evaluation.pictures import PictureLog, draw_latent
from ldm_vae.images.evaluation import EvaluationBatch
from ldm_vae.metrics.latents import LatentMetrics
from tests.pictures import picture, save_pictures, smooth_picture
from tests.tiny import tiny_autoencoder


def add(log: PictureLog, indices: Sequence[int], psnr: Sequence[Sequence[float]]) -> None:
    """Add images of one grey each with these figures, of one autoencoder a row."""
    images = torch.tensor([index / 500 for index in indices])[:, None, None, None].expand(-1, 3, 8, 8)
    batch = EvaluationBatch(indices=list(indices), images=images, names=[f"{i}.png" for i in indices], skipped=[])
    columns, latents = [images] * (1 + len(psnr)), [images[:, :, ::2, ::2]] * len(psnr)
    log.add(batch, columns, latents, [{"psnr": torch.tensor(values)} for values in psnr])


def chosen(psnr: list[list[float]], *, num_kept: int, batch_size: int, processes: int) -> PictureLog:
    count = len(psnr[0])
    logs = [PictureLog(indices=range(count), num_kept=num_kept, factor=2) for _ in range(processes)]
    for process, log in enumerate(logs):
        share = list(range(process, count, processes))
        for start in range(0, len(share), batch_size):
            batch = share[start : start + batch_size]
            add(log, batch, [[values[index] for index in batch] for values in psnr])
        assert len(log.kept) <= num_kept * (len(psnr) + 1)
    logs[0].merge(logs)
    return logs[0]


@pytest.mark.parametrize(("batch_size", "processes"), [(1, 1), (7, 1), (4, 3)])
def test_half_are_the_worst_of_each_autoencoder_and_half_are_spread(batch_size: int, processes: int) -> None:
    values = torch.rand(2, 100, generator=torch.Generator().manual_seed(0)) * 20 + 20
    values[0, 41] = 3.0
    values[0, 42] = 4.0
    values[1, 77] = float("nan")
    values[1, 78] = 5.0
    log = chosen(values.tolist(), num_kept=8, batch_size=batch_size, processes=processes)
    assert list(log.kept) == [0, 25, 41, 42, 50, 75, 77, 78]
    assert len(log.rows) == 100
    assert log.rows[41].figures[0]["psnr"] == 3.0
    level = np.asarray(log.kept[41].images[0])[0, 0, 0]
    assert level == round((41 / 500 + 1) * 127.5)  # the picture is that of its number


@pytest.mark.parametrize("num_kept", [0, 1, 3])
def test_no_more_are_kept_than_asked_for(num_kept: int) -> None:
    log = chosen([[30.0, 20.0, 10.0]], num_kept=num_kept, batch_size=2, processes=1)
    assert len(log.kept) == num_kept
    assert len(chosen([[30.0, 20.0]], num_kept=9, batch_size=2, processes=1).kept) == 2


def test_channels_are_grey_about_their_means() -> None:
    metrics = LatentMetrics(latent_channels=2)
    latent = (
        torch.randn(1, 2, 8, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 0.5])[:, None, None]
    )
    metrics.update(latent, None)
    summary = metrics.compute()
    pixels = np.asarray(draw_latent(latent[0], summary), dtype=float)
    assert pixels.shape == (8, 12)
    for channel in range(2):
        expected = (latent[0, channel].numpy() - summary.channel_mean[channel]) / summary.channel_std[channel]
        assert pixels[:, 6 * channel : 6 * channel + 6] == pytest.approx(
            np.clip((expected / 3 + 1) * 127.5, 0, 255), abs=0.51
        )


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    tiny_autoencoder().save_pretrained(folder / "vae")
    photos = Path(save_pictures(folder / "photos", count=3, size=(40, 24)))
    smooth_picture(1000, 60).save(photos / "wide.png")
    picture(7, size=(20, 20), mode="L").save(photos / "grey.png")
    options = EvaluateOptions(
        vae=[str(folder / "vae")], data=str(photos), output=str(folder / "out"), num_workers=0, perceptual="none"
    )
    summary = evaluate(options)
    assert summary.report == folder / "out" / "report.html"
    assert summary.report.is_file()
    return folder / "out"


def lines_of(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "per_picture.jsonl").read_text().splitlines()]


def test_means_are_those_of_the_single_figures(output: Path) -> None:
    metrics = json.loads((output / "metrics.json").read_text())["evaluations"][0]["metrics"]
    lines = lines_of(output)
    assert len(lines) == 5
    for name in ("psnr", "ssim", "kl"):
        values = [line["figures"][0][name] for line in lines]
        assert np.mean(values) == pytest.approx(metrics[name]["value"], rel=1e-5)


def test_kept_pixels_are_those_of_original_and_reconstruction(output: Path) -> None:
    autoencoder = AutoencoderKL.from_pretrained(output.parent / "vae")
    for line in lines_of(output):
        with Image.open(output.parent / "photos" / line["name"]) as image:
            original = np.asarray(image.convert("RGB"))
        left, top, right, bottom = line["kept"]["box"]
        assert [right - left, bottom - top] == [min(768, line["size"][0]), line["size"][1]]
        stem = f"whole-{line['index']:06d}"
        kept = np.asarray(Image.open(output / "pictures" / f"{stem}-original.webp").convert("RGB"))
        assert (kept == original[top:bottom, left:right]).all()
        images = torch.from_numpy(original / 127.5 - 1).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            decoded = autoencoder.decode(autoencoder.encode(images).latent_dist.mean).sample[0]
        saved = np.round((decoded.clamp(-1, 1).permute(1, 2, 0).numpy() + 1) * 127.5)[top:bottom, left:right]
        made = np.asarray(Image.open(output / "pictures" / f"{stem}-0.webp").convert("RGB"), dtype=float)
        assert np.abs(made - saved).max() <= 1
        latent = Image.open(output / "pictures" / f"{stem}-0-latent.png")
        assert latent.size == (4 * (right - left) // 2, (bottom - top) // 2)


def test_spectra_are_of_the_kept_pictures(output: Path) -> None:
    entry = json.loads((output / "metrics.json").read_text())["pictures"][0]
    assert entry["kept"] == [0, 1, 2, 3, 4]
    assert len(entry["spectra"]["original"]) == 16
    assert len(entry["spectra"]["reconstructions"]) == 1
    assert entry["spectra"]["original"][0] > 10 * entry["spectra"]["original"][12]  # smooth pictures


def test_without_a_report_there_is_none(output: Path, tmp_path: Path) -> None:
    data, vae = str(output.parent / "photos"), str(output.parent / "vae")
    options = EvaluateOptions(
        vae=[vae], data=data, output=str(tmp_path / "out"), num_workers=0, perceptual="none", report=False,
        report_pictures=0,
    )  # fmt: skip
    summary = evaluate(options)
    assert summary.report is None
    assert "report: " not in str(summary)
    assert not (tmp_path / "out" / "report.html").exists()
    assert list((tmp_path / "out" / "pictures").iterdir()) == []
