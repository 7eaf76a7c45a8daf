"""Samples: which method is taken and why, that it is said, and pictures that the seed alone decides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_vae import decode_latents, load_autoencoder, sample_pictures
from ldm_vae.config.commands.explore import ExploreSampleOptions
from ldm_vae.encoding.encode import encode
from ldm_vae.exploring.gaussian import normal
from ldm_vae.exploring.sample import sample
from tests import encodings
from tests.exploring.conftest import COUNT, Space
from tests.tiny import tiny_autoencoder, tiny_family


def options(space: Space, output: Path, **changes: Any) -> ExploreSampleOptions:
    values: dict[str, Any] = {"vae": space.vae, "count": 3, "num_workers": 0}
    if not {"data", "latents", "method"} & changes.keys():
        values["latents"] = space.latents
    return ExploreSampleOptions(output=str(output), **values | changes)


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "explore.json").read_text())


@pytest.fixture(scope="module")
def whitened(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An autoencoder whose posteriors are all the prior, mean 0 and variance 1."""
    autoencoder = tiny_autoencoder()
    torch.nn.init.zeros_(autoencoder.quant_conv.weight)
    torch.nn.init.zeros_(autoencoder.quant_conv.bias)
    folder = tmp_path_factory.mktemp("whitened")
    autoencoder.save_pretrained(folder)
    return str(folder)


def test_the_prior_is_taken_where_latents_follow_it(space: Space, whitened: str, tmp_path: Path) -> None:
    summary = sample(options(space, tmp_path / "out", vae=whitened, data=space.photos, resolution=16))
    assert "3 pictures drawn from the prior N(0, I); pictures' latents lie at least " in str(summary)
    found = record(tmp_path / "out")
    assert (found["method"], found["num_latents"]) == ("prior", COUNT)
    assert found["prior"]["nats_per_element_at_least"] == pytest.approx(0, abs=1e-6)
    autoencoder = load_autoencoder(whitened)
    noise = normal(range(3), (4, 8, 8), seed=0)
    assert noise.std().item() == pytest.approx(1, abs=0.1)
    for number, plain in enumerate(decode_latents(autoencoder, noise, normalize="none")):
        written = np.asarray(Image.open(tmp_path / "out" / "pictures" / f"{number:05d}.png")).astype(int)
        assert np.abs(written - np.asarray(plain)).max() <= 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["explore.json", "grid.png", "pictures"]


def test_other_latents_get_a_gaussian_and_the_same_seed_gives_the_same_bytes(space: Space, tmp_path: Path) -> None:
    far = tiny_autoencoder()
    far.quant_conv.weight.data *= 20
    far.save_pretrained(tmp_path / "vae")
    vae = str(tmp_path / "vae")
    encode(encodings.options(vae, space.photos, tmp_path / "latents"))
    summary = sample(options(space, tmp_path / "one", vae=vae, latents=str(tmp_path / "latents")))
    assert f"a Gaussian with mean and covariance of all elements of {COUNT} latents of " in str(summary)
    assert "so samples of it would be unlike theirs" in str(summary)
    found = record(tmp_path / "one")
    assert found["method"] == "gaussian"
    assert found["prior"]["nats_per_element_at_least"] > found["prior"]["taken_for_real_up_to"]
    sample(options(space, tmp_path / "two", vae=vae, data=space.photos, resolution=16, batch_size=1))
    sample(options(space, tmp_path / "same", vae=vae, latents=str(tmp_path / "latents")))
    sample(options(space, tmp_path / "other", vae=vae, latents=str(tmp_path / "latents"), seed=1))
    for number in range(3):
        name = f"pictures/{number:05d}.png"
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "same" / name).read_bytes()
        assert (tmp_path / "one" / name).read_bytes() != (tmp_path / "other" / name).read_bytes()
        encoded_now, from_folder = (
            np.asarray(Image.open(tmp_path / way / name)).astype(int) for way in ("two", "one")
        )
        assert np.abs(encoded_now - from_folder).max() <= 1


def test_a_diffusion_model_is_trained_and_drawn_from(space: Space, tmp_path: Path) -> None:
    for output in ("one", "again"):
        changes: dict[str, Any] = {"method": "diffusion", "steps": 2, "latents": space.latents, "count": 1}
        summary = sample(options(space, tmp_path / output, **changes))
    assert f"a small diffusion model (the probe's) trained 2 steps on {COUNT} latents" in str(summary)
    assert record(tmp_path / "one")["method"] == "diffusion"
    assert not (tmp_path / "one" / "work").exists()
    assert (tmp_path / "one" / "grid.png").read_bytes() == (tmp_path / "again" / "grid.png").read_bytes()


def test_codebooks_are_sampled_by_codes_or_quantised(space: Space, tmp_path: Path) -> None:
    vae = tmp_path / "vq"
    tiny_family(family="vq", codebook_size=16).model.save_pretrained(vae)
    changes: dict[str, Any] = {"vae": str(vae), "data": space.photos, "resolution": 16}
    summary = sample(options(space, tmp_path / "gaussian", **changes))
    assert "each position then taken to its nearest code; VQModel has no posterior" in str(summary)
    summary = sample(options(space, tmp_path / "codes", method="codes", **changes))
    assert f"codes by how often {COUNT} latents of" in str(summary)
    assert record(tmp_path / "codes")["method"] == "codes"
    assert record(tmp_path / "codes")["prior"] is None


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"method": "codes", "latents": "LATENTS"},
            "codes is for codebooks, and AutoencoderKL has none",
        ),
        ({"method": "prior", "resolution": 15}, "resolution is 15, which the model's factor 2 does not divide"),
        ({"method": "prior", "vae": "TINY"}, "AutoencoderTiny has no posterior"),
        ({"latents": "nowhere"}, "nowhere holds no index.json"),
        ({"latents": "LATENTS", "vae": "TINY"}, "another autoencoder"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], match: str, space: Space, tmp_path: Path) -> None:
    tiny_family(family="tiny", block_out_channels=[8, 8]).model.save_pretrained(tmp_path / "tiny")
    places = {"LATENTS": space.latents, "TINY": str(tmp_path / "tiny")}
    with pytest.raises(ValueError, match=match):
        sample(options(space, tmp_path / "out", **{key: places.get(str(v), v) for key, v in changes.items()}))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"method": "auto"}, "method auto needs latents to learn from"),
        ({"latents": "a", "data": "b"}, "name one of them"),
        ({"latents": "a", "resolution": 16}, "leave it out beside latents"),
        ({"latents": "a", "steps": 3}, "they go with method diffusion"),
    ],
)
def test_options_that_contradict(changes: dict[str, Any], match: str, space: Space, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        options(space, tmp_path / "out", **changes)


def test_python_says_the_method_and_why(space: Space, whitened: str) -> None:
    autoencoder = load_autoencoder(space.vae)
    drawn = sample_pictures(autoencoder, space.latents, count=2, method="gaussian", covariance="channel", seed=4)
    assert drawn.method == "gaussian"
    assert "mean and standard deviation a channel" in drawn.reason
    again = sample_pictures(autoencoder, space.latents, count=2, method="gaussian", covariance="channel", seed=4)
    assert [np.asarray(a).tobytes() for a in drawn.pictures] == [np.asarray(b).tobytes() for b in again.pictures]
    prior = sample_pictures(load_autoencoder(whitened), method="prior", resolution=16)
    assert (prior.method, prior.pictures[0].size) == ("prior", (16, 16))
    assert "whether pictures' latents follow the prior isn't known" in prior.reason
    with pytest.raises(ValueError, match="method auto needs latents to learn from; method prior needs none"):
        sample_pictures(autoencoder)
    means = sample_pictures(autoencoder, torch.randn(6, 4, 8, 8))
    assert means.method == "gaussian"
