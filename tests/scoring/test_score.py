"""Scores against plain computation, the same however pictures are dealt out; and which maps are written."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from scipy.ndimage import uniform_filter
from scipy.stats import mannwhitneyu

from ldm_vae.config.commands.score import ScoreOptions
from ldm_vae.scoring.score import score
from ldm_vae.system.output_kinds import SCORES, output_kind
from ldm_vae.system.randomness import sample_rng
from tests.launching import run_launch
from tests.scoring.running import SIDE, lines_of, run


@torch.no_grad()
def plain_figures(vae: AutoencoderKL, path: Path, *, samples: int, window: int) -> dict[str, float]:
    """A picture's figures by numpy, scipy, Pillow and diffusers alone."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    images = torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None].float()
    posterior = vae.encode(images).latent_dist

    def decoded(z: torch.Tensor) -> np.ndarray:
        return (vae.decode(z).sample[0].permute(1, 2, 0).double().numpy() + 1) * 127.5

    squares = (decoded(posterior.mean).round().clip(0, 255) - pixels) ** 2
    means = uniform_filter(squares.mean(axis=-1), size=window)[
        window // 2 : -(window // 2), window // 2 : -(window // 2)
    ]
    digest = sha256(np.ascontiguousarray(pixels.transpose(2, 0, 1)).tobytes()).digest()
    rng = sample_rng(int.from_bytes(digest[:8], "little"), seed=0, stream="score/noise")
    errors = []
    for _ in range(samples):
        drawn = torch.from_numpy(rng.standard_normal(posterior.mean.shape[1:], dtype=np.float32))
        errors.append(((decoded(posterior.mean + posterior.std * drawn).clip(0, 255) - pixels) ** 2).mean())
    normal = torch.distributions.Normal(0.0, 1.0)
    kl = torch.distributions.kl_divergence(torch.distributions.Normal(posterior.mean, posterior.std), normal).sum()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return {
        "pixel": math.sqrt(squares.mean()),
        "pixel_peak": math.sqrt(means.max()),
        "squared_error": float(np.mean(errors)),
        "kl_bits": kl.item() / pixels.size / math.log(2),
        "complexity_bits": 8 * len(buffer.getvalue()) / pixels.size,
    }


def test_scores_thresholds_and_areas_are_those_of_plain_computation(place: Path, tmp_path: Path) -> None:
    summary = run(place, tmp_path / "out", posterior_samples=2, quantile=0.7, batch_size=3)
    assert output_kind(tmp_path / "out") is SCORES
    lines, normal = lines_of(tmp_path / "out"), lines_of(tmp_path / "out", "normal.jsonl")
    written = json.loads((tmp_path / "out/metrics.json").read_text())
    assert sorted(line["name"] for line in lines) == sorted(
        str(path.relative_to(place / "data")) for path in (place / "data").glob("*/[0-9].png")
    )
    vae = AutoencoderKL.from_pretrained(place / "vae").eval()
    plain = {}
    for folder, each in ((place / "good", normal), (place / "data", lines)):
        for line in each:
            figures = plain_figures(vae, folder / line["name"], samples=2, window=5)
            for name, value in figures.items():
                found = (line["scores"] | line["figures"])[name]
                assert found == pytest.approx(value, rel=2e-3 if name.startswith("pixel") else 1e-4), name
            plain[folder.name, line["name"]] = figures
    goods = [plain["good", line["name"]] for line in normal]
    variance = np.mean([figures["squared_error"] for figures in goods]) + 1 / 12
    assert written["likelihood"]["variance"] == pytest.approx(variance, rel=1e-4)

    def negative_elbo(figures: dict[str, float]) -> float:
        squares = figures["squared_error"] + 1 / 12
        return 0.5 * math.log2(2 * math.pi * variance) + squares / (2 * variance) / math.log(2) + figures["kl_bits"]

    def corrected(figures: dict[str, float]) -> float:
        return negative_elbo(figures) - figures["complexity_bits"]

    plain_scores: dict[str, Callable[[dict[str, float]], float]] = {
        "pixel": lambda figures: figures["pixel"], "negative_elbo": negative_elbo, "complexity_corrected": corrected,
    }  # fmt: skip
    for name, of in plain_scores.items():
        result = written["scores"][name]
        assert result["threshold"] == pytest.approx(np.quantile([of(figures) for figures in goods], 0.7), rel=1e-3)
        values = {line["name"]: of(plain["data", line["name"]]) for line in lines}
        for line in lines:
            assert line["scores"][name] == pytest.approx(values[line["name"]], rel=1e-3)
            assert line["above"][name] == (line["scores"][name] > result["threshold"])
        assert result["data_above"] == sum(line["above"][name] for line in lines)
        assert result["normal_above"] == sum(line["above"][name] for line in normal) == 2
        odd = [value for key, value in values.items() if key.startswith("odd/")]
        fine = [value for key, value in values.items() if key.startswith("normal/")]
        auroc = mannwhitneyu(odd, fine).statistic / len(odd) / len(fine)
        assert result["auroc"] == pytest.approx(auroc)
        assert summary.results[name].detection.auroc == pytest.approx(auroc)  # type: ignore[union-attr]
    assert written["labels"] == {
        "from": "classes", "normal_label": "normal", "num_normal": 4, "num_anomalies": 3, "num_without": 0
    }  # fmt: skip
    assert [each["name"] for each in written["skipped"]["data"]] == ["odd/broken.png"]
    assert "Nalisnick" in written["protocol"]["paradox"]
    ranked = [line["scores"]["pixel"] for line in lines]
    assert ranked == sorted(ranked, reverse=True)
    assert summary.ranked_by == "pixel"
    assert f"most unlike normal: {lines[0]['name']}" in str(summary)


def close(lines: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    """Hold that two files of scores say the same."""
    assert [line["name"] for line in lines] == [line["name"] for line in others]
    for line, other in zip(lines, others, strict=True):
        assert line["scores"] | line["figures"] == pytest.approx(other["scores"] | other["figures"], rel=1e-5)
        assert (line["above"], line["label"]) == (other["above"], other["label"])


def hold_equal(one: Path, other: Path) -> None:
    """Hold that two folders have the same scores, in the same order, and the same maps."""
    for name in ("scores.jsonl", "normal.jsonl"):
        close(lines_of(one, name), lines_of(other, name))
    sets = [json.loads((folder / "metrics.json").read_text()) for folder in (one, other)]
    assert sets[0]["data"]["fingerprint"] == sets[1]["data"]["fingerprint"]
    assert sets[0]["protocol"] == sets[1]["protocol"]
    names = [sorted(path.name for path in (folder / "maps").iterdir()) for folder in (one, other)]
    assert names[0] == names[1] == ["0001.npz", "0002.npz"]
    for name in names[0]:
        maps = [np.load(folder / "maps" / name)["pixel"] for folder in (one, other)]
        np.testing.assert_allclose(maps[0], maps[1], rtol=1e-2, atol=1)


def test_figures_do_not_depend_on_batches(place: Path, tmp_path: Path) -> None:
    for batch_size in (1, 3):
        run(place, tmp_path / str(batch_size), batch_size=batch_size, num_maps=2, num_pictures=2)
    hold_equal(tmp_path / "1", tmp_path / "3")


@pytest.mark.processes
def test_two_processes_find_what_one_finds(place: Path, tmp_path: Path) -> None:
    run(place, tmp_path / "one", num_maps=2, num_pictures=2)
    options = {"vae": str(place / "vae"), "data": str(place / "data"), "normal": str(place / "good")}
    two = ScoreOptions(
        output=str(tmp_path / "two"), resolution=SIDE, num_workers=0, perceptual="none", batch_size=2, num_maps=2,
        num_pictures=2, **options,
    )  # fmt: skip
    run_launch(score, two, folder=tmp_path)
    hold_equal(tmp_path / "one", tmp_path / "two")


def test_maps_and_pictures_are_of_the_highest_scores(place: Path, tmp_path: Path) -> None:
    run(place, tmp_path / "out", perceptual="efficientnet_lite0", num_maps=3, num_pictures=2, rank_by="pixel_peak",
        batch_size=2)  # fmt: skip
    lines = lines_of(tmp_path / "out")
    ranked = [line["scores"]["pixel_peak"] for line in lines]
    assert ranked == sorted(ranked, reverse=True)
    assert [line.get("map") for line in lines] == [*(f"maps/000{i}.npz" for i in (1, 2, 3)), *[None] * 4]
    assert [line.get("picture") for line in lines] == ["pictures/0001.png", "pictures/0002.png", *[None] * 5]
    assert sorted(path.name for path in (tmp_path / "out/maps").iterdir()) == ["0001.npz", "0002.npz", "0003.npz"]
    for line in lines[:3]:
        with np.load(tmp_path / "out" / line["map"]) as maps:
            assert {name: maps[name].shape for name in maps} == {"pixel": (SIDE, SIDE), "perceptual": (SIDE, SIDE)}
            squares = maps["pixel"].astype(np.float64) ** 2
            assert math.sqrt(squares.mean()) == pytest.approx(line["scores"]["pixel"], rel=2e-3)
            peak = uniform_filter(squares, size=5)[2:-2, 2:-2].max()
            assert math.sqrt(peak) == pytest.approx(line["scores"]["pixel_peak"], rel=2e-3)
            assert maps["perceptual"].mean() == pytest.approx(line["scores"]["perceptual"], rel=0.1)
    shown = np.asarray(Image.open(tmp_path / "out" / lines[0]["picture"]))
    original = np.asarray(Image.open(place / "data" / lines[0]["name"]))
    large = original.repeat(8, axis=0).repeat(8, axis=1)  # 256 pixels a side, which people see defects on
    top, left = np.argwhere((shown == original[0, 0]).all(-1))[0]
    assert (shown[top : top + 8 * SIDE, left : left + 8 * SIDE] == large).all()
