"""`density` on tiny autoencoders: figures against a plain computation, refusals, and one process against two."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from torch.distributions import Normal

from ldm_vae.cli import main
from ldm_vae.config.commands.density import DensityOptions
from ldm_vae.config.commands.export import ExportOptions
from ldm_vae.density.density import density
from ldm_vae.exporting.export import export
from ldm_vae.system.randomness import sample_rng
from ldm_vae.training.likelihood import density_obstacle
from ldm_vae.training.run_autoencoder import load_run_autoencoder
from tests.density.runs import LOSS, measure, untrained_run
from tests.launching import run_launch
from tests.pictures import picture, save_pictures
from tests.tiny import tiny_config

SAMPLES = 3
STD = math.exp(-1)
SIZES = [(24, 20), (16, 16), (21, 33)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures of different sizes, and one that is no picture."""
    folder = tmp_path_factory.mktemp("photos")
    for number, size in enumerate(SIZES):
        picture(number, size=size).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes((folder / "1.png").read_bytes()[:200])
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    data = {"data": {"train": str(photos), "resolution": 16}}
    return {
        kind: untrained_run(folder / kind, loss={"likelihood": kind}, **data)
        for kind in ("gaussian", "laplace", "logistic")
    }


def figures(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "per_picture.jsonl").read_text().splitlines()]


def log_probability(levels: Tensor, noise: Tensor, y: Tensor, *, kind: str) -> tuple[Tensor, Tensor]:
    """What is measured of levels [C, H, W], and the sum of its log-likelihood in nats a level."""
    dequantised = (levels + noise - 0.5) / 127.5 - 1
    if kind == "gaussian":
        return dequantised, (Normal(y, STD).log_prob(dequantised) + math.log(2 / 255)).sum()
    if kind == "laplace":
        of_noise = torch.distributions.Laplace(y, STD / math.sqrt(2))
        return dequantised, (of_noise.log_prob(dequantised) + math.log(2 / 255)).sum()
    scale = STD * math.sqrt(3) / math.pi
    upper, lower = ((levels + side) / 127.5 - 1 for side in (0.5, -0.5))
    upper[levels == 255], lower[levels == 0] = math.inf, -math.inf
    mass = torch.sigmoid((upper - y) / scale) - torch.sigmoid((lower - y) / scale)
    return levels / 127.5 - 1, mass.log().sum()


@torch.no_grad()
def plain_bits(model: AutoencoderKL, levels: Tensor, *, index: int, kind: str) -> dict[str, float]:
    """The bounds as the papers have them, one sample after the other, in float64."""
    level_noise = sample_rng(index, seed=5, stream="density/levels").random(tuple(levels.shape), dtype=np.float32)
    rng = sample_rng(index, seed=5, stream="density/noise")
    shown = log_probability(levels, torch.from_numpy(level_noise), torch.zeros(()), kind=kind)[0]
    posterior = model.encode(shown[None]).latent_dist
    prior, q = Normal(0.0, 1.0), Normal(posterior.mean, posterior.std)
    log_weights, log_likelihoods = [], []
    for _ in range(SAMPLES):
        z = posterior.mean + posterior.std * torch.from_numpy(rng.standard_normal(q.mean.shape[1:], dtype=np.float32))
        y = model.decode(z).sample[0]
        _, log_likelihood = log_probability(levels, torch.from_numpy(level_noise), y, kind=kind)
        log_likelihoods.append(log_likelihood)
        log_weights.append(log_likelihood + prior.log_prob(z).sum() - q.log_prob(z).sum())
    elements = levels.numel() * math.log(2)
    weights = torch.stack(log_weights)
    return {
        "elbo": -weights.mean().item() / elements,
        "iwae": -(torch.logsumexp(weights, 0) - math.log(SAMPLES)).item() / elements,
        "distortion": -torch.stack(log_likelihoods).mean().item() / elements,
        "rate": torch.distributions.kl_divergence(q, prior).sum().item() / elements,
    }


@pytest.mark.parametrize("kind", ["gaussian", "laplace", "logistic"])
def test_figures_are_those_of_the_papers(kind: str, runs: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    summary = measure(runs[kind], photos, tmp_path / "out", samples=SAMPLES, seed=5)
    model = load_run_autoencoder(runs[kind], checkpoint="latest", weights="ema").family.model.double()
    rows = figures(tmp_path / "out")
    assert [row["name"] for row in rows] == ["0.png", "1.png", "2.png"]
    for row, (width, height) in zip(rows, SIZES, strict=True):
        width, height = width // 2 * 2, height // 2 * 2
        assert row["size"] == [width, height]
        whole = np.asarray(Image.open(photos / row["name"]), dtype=np.float64)[:height, :width]
        levels = torch.from_numpy(whole).permute(2, 0, 1)
        assert row["bits"] == pytest.approx(plain_bits(model, levels, index=row["index"], kind=kind), rel=1e-4)
        assert row["bits"]["iwae"] < row["bits"]["elbo"]
    for name, bound in summary.bounds.items():
        values = [row["bits"][name] for row in rows]
        assert bound.value == pytest.approx(np.mean(values))
        assert bound.standard_error == pytest.approx(np.std(values, ddof=1) / math.sqrt(3))

    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["likelihood"]["kind"] == kind
    assert written["likelihood"]["std_levels"] == pytest.approx(STD * 127.5)
    assert written["checkpoint"] == "checkpoint-000001"
    assert written["metrics"]["elbo"]["value"] == summary.bounds["elbo"].value
    assert (written["num_images"], written["num_skipped"]) == (3, 1)
    assert [skipped["name"] for skipped in written["skipped"]] == ["broken.png"]
    assert ("Theis" in written["protocol"]["likelihood"]) == (kind != "logistic")
    assert (tmp_path / "out" / "table.md").read_text().strip() in str(summary)


def test_neither_batches_nor_other_pictures_show(runs: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    def rows(name: str, **options: Any) -> Iterator[dict[str, Any]]:
        measure(runs["gaussian"], photos, tmp_path / name, samples=5, resolution=16, **options)
        yield from figures(tmp_path / name)

    whole = {row["name"]: row["bits"] for row in rows("whole", batch_size=8)}
    for name, options in (("one", {"batch_size": 1}), ("few", {"num_images": 2, "batch_size": 7})):
        for row in rows(name, **options):
            assert row["bits"] == pytest.approx(whole[row["name"]], rel=1e-5)
    other = {row["name"]: row["bits"] for row in rows("other", seed=1)}
    assert all(abs(other[name]["elbo"] - bits["elbo"]) > 1e-6 for name, bits in whole.items())


@pytest.mark.processes
def test_two_processes_find_what_one_finds(runs: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    alone = measure(runs["gaussian"], photos, tmp_path / "alone", samples=2)
    options = DensityOptions(
        vae=str(runs["gaussian"]), data=str(photos), output=str(tmp_path / "both"), samples=2, num_workers=0
    )
    run_launch(density, options, folder=tmp_path)
    one, both = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("alone", "both"))
    assert (both["data_fingerprint"], both["num_images"]) == (one["data_fingerprint"], 3)
    assert both["protocol"] == one["protocol"]
    for name, bound in alone.bounds.items():
        assert both["metrics"][name]["value"] == pytest.approx(bound.value, rel=1e-6)
    assert [row["index"] for row in figures(tmp_path / "both")] == [
        row["index"] for row in figures(tmp_path / "alone")
    ]


def test_an_export_says_what_its_run_says(runs: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    export(ExportOptions(run=str(runs["laplace"]), output=str(tmp_path / "vae"), num_workers=0))
    of_run, of_export = (
        measure(source, photos, tmp_path / f"out-{source.name}", samples=2)
        for source in (runs["laplace"], tmp_path / "vae")
    )
    for name, bound in of_run.bounds.items():
        assert of_export.bounds[name].value == pytest.approx(bound.value, rel=1e-6)
    with pytest.raises(ValueError, match=r"checkpoint is of runs; the export .* holds one autoencoder"):
        measure(tmp_path / "vae", photos, tmp_path / "no", checkpoint="best")
    measurements = tmp_path / "vae" / "measurements.json"
    content = json.loads(measurements.read_text())
    for damaged in ({"kind": "none"}, {"kind": "cauchy"}, {"logvar": None}, {"more": 1}):
        measurements.write_text(json.dumps(content | {"likelihood": content["likelihood"] | damaged}))
        with pytest.raises(ValueError, match=r"is neither a run nor an export whose measurements\.json says"):
            measure(tmp_path / "vae", photos, tmp_path / "no")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        ({"likelihood": "none"}, "trained without a likelihood; train with loss.likelihood gaussian"),
        ({"disc_weight": 0.5}, r"trained against a discriminator \(loss.disc_weight 0.5\)"),
        ({"perceptual": "lpips_vgg"}, r"trained for a perceptual distance too \(loss.perceptual lpips_vgg\)"),
    ],
)
def test_what_was_trained_for_something_else_has_no_density(loss: dict[str, Any], told: str, tmp_path: Path) -> None:
    config = tiny_config(loss=LOSS | {"likelihood": "gaussian"} | loss)
    with pytest.raises(AssertionError, match=told):
        assert density_obstacle(config) is None, density_obstacle(config)
    config = tiny_config(loss=LOSS | {"likelihood": "gaussian", "perceptual": "lpips_vgg", "perceptual_weight": 0.0})
    assert density_obstacle(config) is None


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({}, "trained against a discriminator"),
        ({"family": "flux2"}, None),
        ({"family": "vq", "codebook_size": 16}, "a vq bottleneck has no posterior to bound one by"),
        ({"family": "vq", "bottleneck": "fsq", "fsq_levels": [4, 3, 3]}, "bottleneck has no posterior"),
        ({"family": "tiny"}, "a deterministic bottleneck has no posterior"),
        ({"family": "dc", "layers_per_block": 1, "latent_channels": 4}, "a deterministic bottleneck has no posterior"),
    ],
)
def test_every_family_gives_a_density_or_the_reason(
    model: dict[str, Any], told: str | None, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loss = {"likelihood": "gaussian", "disc_weight": 0.0 if model else 0.5}
    run = untrained_run(tmp_path / "run", loss=loss, model={"block_out_channels": [8, 8]} | model)
    words = ["density", "--vae", str(run), "--data", str(photos), "--output", str(tmp_path / "out"),
             "--resolution", "16", "--num_workers", "0", "--samples", "2"]  # fmt: skip
    if told is None:
        main(words)
        assert "| run " in capsys.readouterr().out
        return
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ldm-vae: --vae {run} gives no density: ")
    assert told in line
    assert not (tmp_path / "out").exists()


def test_mistakes_are_one_line(runs: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    run = runs["gaussian"]
    for match, vae, data, options in (
        ("resolution is 33.*take 32 or 34", run, photos, {"resolution": 33}),
        ("value_range makes numbers of images", run, photos, {"value_range": [0, 1]}),
        ("is neither a run nor an export", photos, photos, {}),
        ("none of its images can be read; the first: a.png", run, tmp_path / "broken", {}),
        (r"broken\.png", run, photos, {"strict": True}),
        ("checkpoint-000009", run, photos, {"checkpoint": "checkpoint-000009"}),
        ("samples is 0; it must be positive", run, photos, {"samples": 0}),
    ):
        with pytest.raises(ValueError, match=match) as caught:
            measure(vae, data, tmp_path / "out", **options)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    measure(run, photos, tmp_path / "out", samples=1)
    with pytest.raises(ValueError, match="holds a density already; overwrite replaces it"):
        measure(run, photos, tmp_path / "out")


def test_other_weights_of_the_divergence_are_told_and_one_picture_has_no_spread(tmp_path: Path) -> None:
    photos = Path(save_pictures(tmp_path / "photos", count=1, size=(16, 16)))
    run = untrained_run(tmp_path / "run", loss={"likelihood": "logistic", "beta": 0.5})
    summary = measure(run, photos, tmp_path / "out")
    assert "trained with weight 0.5 for the KL divergence" in str(summary)
    assert summary.bounds["elbo"].standard_error is None
    assert "±" not in str(summary)


def test_a_broken_autoencoder_shows(runs: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    export(ExportOptions(run=str(runs["gaussian"]), output=str(tmp_path / "vae"), num_workers=0))
    broken = AutoencoderKL.from_pretrained(tmp_path / "vae")
    broken.decoder.conv_out.bias.data[0] = float("nan")
    broken.save_pretrained(tmp_path / "vae")
    summary = measure(tmp_path / "vae", photos, tmp_path / "out")
    assert summary.problem == "vae: the bounds of 3 of 3 pictures aren't finite"
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["metrics"]["elbo"]["value"] is None
    assert written["metrics"]["rate"]["value"] is not None
