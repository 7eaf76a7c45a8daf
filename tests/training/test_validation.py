"""Validation: on which weights, of which images, and what makes one the best."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from ldm_vae.config.run import Config
from ldm_vae.images.collection import open_collection
from ldm_vae.images.evaluation import EvaluationImages
from ldm_vae.metrics.reconstruction import ReconstructionSummary
from ldm_vae.training.inputs import sized_for_model
from ldm_vae.training.processes import Processes
from ldm_vae.training.run_folder import RunFolder
from ldm_vae.training.state import BestValidation, TrainingState, build_state
from ldm_vae.training.tracking import Tracking
from ldm_vae.training.validation import averaged_weights, best_validation, validate, validation_figures
from tests.pictures import picture
from tests.tiny import tiny_config, tiny_family

NUMBER = 5


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> EvaluationImages:
    """Pictures of growing brightness, so that each more changes every figure."""
    folder = tmp_path_factory.mktemp("validation")
    for index in range(NUMBER):
        Image.fromarray(np.full((32, 32, 3), 20 + 50 * index, dtype=np.uint8)).save(folder / f"{index}.png")
    return EvaluationImages(open_collection(str(folder)), channels=3, resolution=32)


def config_of(**fields: object) -> Config:
    return tiny_config(data={"validation_images": 100} | fields.pop("data", {}), **fields)  # type: ignore[operator]


def built(config: Config) -> TrainingState:
    """A state whose average is far from its weights."""
    torch.manual_seed(0)
    state = build_state(config, accelerator=Accelerator(cpu=True))
    assert state.ema is not None
    for average in state.ema.shadow_params:
        average.mul_(0.5)
    return state


def psnr_of(state: TrainingState, images: EvaluationImages, *, number: int) -> float:
    """Mean PSNR of the first images' reconstructions by the weights that are in the model, written plainly."""
    values = []
    for index in range(number):
        image = images[index].image[None]
        with torch.no_grad():
            mean = state.autoencoder.encode(image).latent_dist.mean
            reconstruction = state.autoencoder.decode(mean).sample.clamp(-1, 1)
        values.append(10 * math.log10(4 / (image - reconstruction).square().mean().item()))
    return sum(values) / number


def test_images_are_squares_or_whole_pictures_as_the_model_takes_them(tmp_path: Path) -> None:
    picture(0, size=(51, 38)).save(tmp_path / "0.png")
    collection, data, family = open_collection(str(tmp_path)), config_of(data={"resolution": 32}).data, tiny_family()
    assert family.spatial_factor == 2
    shapes = [tuple(sized_for_model(collection, data, family=family, whole=whole)[0].image.shape)
              for whole in (False, True)]  # fmt: skip
    assert shapes == [(3, 32, 32), (3, 38, 50)]


def test_averaged_weights_are_validated_and_the_last_ones_put_back(images: EvaluationImages) -> None:
    config = config_of()
    state = built(config)
    before = [parameter.detach().clone() for parameter in state.autoencoder.parameters()]
    raw = psnr_of(state, images, number=NUMBER)
    with averaged_weights(state):
        averaged = psnr_of(state, images, number=NUMBER)
    assert abs(averaged - raw) > 0.01
    summary = validate(
        state, images, config=config, processes=Processes(accelerator=Accelerator(cpu=True), hosts=None)
    )
    assert summary.psnr == pytest.approx(averaged, abs=0.05)  # pictures of 8 bits there
    assert abs(summary.psnr - averaged) < abs(summary.psnr - raw)
    for parameter, kept in zip(state.autoencoder.parameters(), before, strict=True):
        assert torch.equal(parameter, kept)


def test_last_weights_are_put_back_after_an_error(images: EvaluationImages) -> None:
    state = built(config_of())
    before = state.autoencoder.decoder.conv_out.weight.detach().clone()

    def fail_within() -> None:
        with averaged_weights(state):
            assert not torch.equal(state.autoencoder.decoder.conv_out.weight, before)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail_within()
    assert torch.equal(state.autoencoder.decoder.conv_out.weight, before)


def test_no_more_images_are_validated_than_asked_for(images: EvaluationImages) -> None:
    figures = {}
    for number in (2, NUMBER, 100):
        config = config_of(data={"validation_images": number})
        state = built(config)
        summary = validate(
            state, images, config=config, processes=Processes(accelerator=Accelerator(cpu=True), hosts=None)
        )
        assert summary.num_images == min(number, NUMBER)
        with averaged_weights(state):
            assert summary.psnr == pytest.approx(psnr_of(state, images, number=summary.num_images), abs=0.05)
        figures[number] = summary.psnr
    assert figures[2] != figures[NUMBER] == figures[100]


# The best one


@pytest.fixture(scope="module")
def summary(images: EvaluationImages) -> ReconstructionSummary:
    config = config_of()
    return validate(
        built(config), images, config=config, processes=Processes(accelerator=Accelerator(cpu=True), hosts=None)
    )


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("psnr", [20.0, 21.0, 20.5], 2),
        ("ssim", [0.5, 0.4, 0.6], 3),
        ("perceptual", [0.3, 0.2, 0.25], 2),  # a distance: less is better
        ("auto", [0.3, 0.2, 0.25], 2),  # the perceptual distance, where there is one
        ("psnr", [20.0, math.nan, 19.0], 1),
        ("psnr", [math.nan, 19.0, math.nan], 2),
        ("psnr", [19.0, math.inf, 20.0], 3),
        ("perceptual", [0.3, -math.inf, 0.2], 3),
    ],
)
def test_best_validation(summary: ReconstructionSummary, metric: str, values: list[float], best: int) -> None:
    config = config_of(train={"best_metric": metric}, loss={"perceptual": "efficientnet_lite0"})
    named = "perceptual" if metric == "auto" else metric
    held: BestValidation | None = None
    for step, value in enumerate(values, 1):
        validated = dataclasses.replace(summary, **{"perceptual": 1.0} | {named: value})
        held = best_validation(validated, held, config=config, step=step)
    assert held == BestValidation(step=best, metric=named, value=values[best - 1])


def test_none_is_the_best_where_none_is_finite(summary: ReconstructionSummary) -> None:
    broken = dataclasses.replace(summary, psnr=math.nan)
    assert best_validation(broken, None, config=config_of(), step=1) is None


def test_without_a_distance_auto_is_psnr_and_another_metric_starts_anew(summary: ReconstructionSummary) -> None:
    config = config_of()
    best = best_validation(summary, None, config=config, step=1)
    assert best == BestValidation(step=1, metric="psnr", value=summary.psnr)
    other = config_of(train={"best_metric": "ssim"})
    assert best_validation(summary, best, config=other, step=2) == BestValidation(
        step=2, metric="ssim", value=summary.ssim
    )
    with pytest.raises(ValueError, match=r"best_metric is perceptual, but loss\.perceptual is none"):
        best_validation(summary, None, config=config_of(train={"best_metric": "perceptual"}), step=1)


# What is written


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_metrics_stay_json_whatever_the_values(
    tmp_path: Path, summary: ReconstructionSummary, capsys: pytest.CaptureFixture[str]
) -> None:
    tracking = Tracking(RunFolder(tmp_path), config_of(), accelerator=Accelerator(cpu=True), step=0)
    figures = validation_figures(summary) | {
        "validation/psnr": math.nan,
        "validation/kl": math.inf,
        "validation/kl_per_channel": [0.5, -math.inf],
    }
    tracking.validated(figures, step=3)
    tracking.validated(validation_figures(summary), step=6)
    tracking.close()
    broken, whole = (json.loads(line, parse_constant=refuse_constant) for line in (tmp_path / "metrics.jsonl").open())
    assert broken["validation/psnr"] is broken["validation/kl"] is None
    assert broken["validation/kl_per_channel"] == [0.5, None]
    assert broken["not_finite"] == {
        "validation/psnr": "nan", "validation/kl": "inf", "validation/kl_per_channel[1]": "-inf",
    }  # fmt: skip
    assert broken["validation/ssim"] == summary.ssim
    assert whole == {"step": 6, **validation_figures(summary)}
    assert "psnr nan" in capsys.readouterr().out


# Whole pictures


def test_whole_pictures_are_validated_within_bounded_memory(tmp_path: Path) -> None:
    """Of any sizes; under a bound strip by strip, with the same figures."""
    rng = np.random.default_rng(0)
    for index, size in enumerate([(90, 64), (64, 130), (33, 41)]):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(tmp_path / f"{index}.png")
    pictures = EvaluationImages(open_collection(str(tmp_path)), channels=3, resolution=None, multiple_of=2)
    figures = []
    for memory_gib in (None, 3e-4):
        config = config_of(train={"validation_memory_gib": memory_gib})
        processes = Processes(accelerator=Accelerator(cpu=True), hosts=None)
        samples = tmp_path / "samples" / "step.png"
        figures.append(validate(built(config), pictures, config=config, processes=processes, samples=samples))
    whole, strips = figures
    assert whole.num_images == strips.num_images == 3
    assert strips.psnr == pytest.approx(whole.psnr, abs=1e-3)
    assert Image.open(samples).size == (3 * 130, 2 * 90)  # each pair a column, on the largest picture's canvas
