"""Ways between pictures: SciPy's rotations, lengths and angles; and strips and animations as a user finds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation, Slerp

from ldm_vae import decode_latents, encode_images, interpolate_latents, interpolate_pictures, load_autoencoder
from ldm_vae.config.commands.explore import ExploreInterpolateOptions
from ldm_vae.exploring.interpolate import interpolate
from ldm_vae.system.output_kinds import EXPLORATION, output_kind
from tests.exploring.conftest import Space
from tests.pictures import picture

STEPS = 5


def test_spherical_is_scipys_rotation() -> None:
    quaternions = np.random.default_rng(1).normal(size=(2, 4))
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    if quaternions[0] @ quaternions[1] < 0:  # SciPy goes the short way of q and -q
        quaternions[1] *= -1
    times = np.linspace(0, 1, STEPS)
    expected = Slerp([0, 1], Rotation.from_quat(quaternions))(times).as_quat()
    expected *= np.sign((expected * quaternions[0]).sum(axis=1, keepdims=True))
    first, second = torch.from_numpy(quaternions)
    found = interpolate_latents(first, second, steps=STEPS, path="spherical")
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_spherical_turns_and_lengthens_evenly() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(4, 6, 6, generator=generator) * scale for scale in (1.0, 3.0))
    way = interpolate_latents(first, second, steps=9, path="spherical").flatten(1).double()
    lengths = way.norm(dim=1)
    torch.testing.assert_close(lengths, torch.linspace(lengths[0], lengths[-1], 9).double(), rtol=1e-5, atol=0)
    units = way / lengths[:, None]
    angles = torch.arccos((units[1:] * units[:-1]).sum(dim=1))
    torch.testing.assert_close(angles, angles[:1].expand(8), rtol=1e-4, atol=0)
    straight = interpolate_latents(first, 3 * second, steps=3, path="linear")[1]
    torch.testing.assert_close(straight, (first + 3 * second) / 2)


@pytest.mark.parametrize("path", ["linear", "spherical"])
def test_ends_are_the_latents_bit_by_bit(path: Any) -> None:
    first, second = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    way = interpolate_latents(first, second, steps=4, path=path)
    assert torch.equal(way[0], first)
    assert torch.equal(way[-1], second)


def test_ways_that_there_are_not() -> None:
    latent = torch.ones(2, 3, 3)
    same = interpolate_latents(latent, 2 * latent, steps=3, path="spherical")
    torch.testing.assert_close(same[1], 1.5 * latent)
    for second, match in ((-latent, "opposite"), (torch.zeros(2, 3, 3), "that is 0"), (torch.ones(2, 3), "shapes")):
        with pytest.raises(ValueError, match=match):
            interpolate_latents(latent, second, steps=3, path="spherical")


def options(space: Space, output: Path, **changes: Any) -> ExploreInterpolateOptions:
    values: dict[str, Any] = {"first": space.picture, "second": str(Path(space.photos) / "0004.png")}
    return ExploreInterpolateOptions(vae=space.vae, output=str(output), steps=STEPS, **values | changes)


def test_strips_and_animations(space: Space, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    picture(50, size=(30, 15)).save(other)
    summary = interpolate(options(space, tmp_path / "way", second=str(other), fps=4.0))
    folder = tmp_path / "way"
    assert sorted(path.name for path in folder.iterdir()) == [
        "explore.json", "linear.png", "linear.webp", "spherical.png", "spherical.webp",
    ]  # fmt: skip
    assert output_kind(folder) is EXPLORATION
    assert "0003.png 24x20, cut about its middle to 24x14 to" in str(summary)
    assert "other.png 30x15, cut about its middle to 24x14" in str(summary)
    autoencoder = load_autoencoder(space.vae)
    ends = [Image.open(space.picture).crop((0, 3, 24, 17)), Image.open(other).crop((3, 0, 27, 14))]
    first, second = encode_images(autoencoder, ends, normalize="none")
    for path in ("linear", "spherical"):
        way = interpolate_latents(first, second, steps=STEPS, path=path)  # type: ignore[arg-type]
        expected = np.concatenate([np.asarray(each) for each in decode_latents(autoencoder, way, normalize="none")], 1)
        strip = np.asarray(Image.open(folder / f"{path}.png"))
        assert strip.shape == (14, STEPS * 24, 3)
        assert np.abs(strip.astype(int) - expected).max() <= 1
        animation = Image.open(folder / f"{path}.webp")
        assert (animation.size, animation.n_frames, animation.info["loop"]) == ((24, 14), 2 * STEPS - 2, 0)
        animation.load()
        assert animation.info["duration"] == 250
    assert (folder / "linear.png").read_bytes() != (folder / "spherical.png").read_bytes()
    record = json.loads((folder / "explore.json").read_text())
    assert record["explore"] == "interpolate"
    assert record["cosine"] == pytest.approx(torch.cosine_similarity(first.flatten(), second.flatten(), 0).item())


def test_the_same_call_gives_the_same_bytes_and_overwrites_nothing(space: Space, tmp_path: Path) -> None:
    for name in ("one", "two"):
        interpolate(options(space, tmp_path / name, path="spherical", resolution=16))
    for name in ("spherical.png", "spherical.webp"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert not (tmp_path / "one" / "linear.png").exists()
    assert Image.open(tmp_path / "one" / "spherical.png").size == (16 * STEPS, 16)
    with pytest.raises(ValueError, match="holds an exploration already"):
        interpolate(options(space, tmp_path / "one"))
    interpolate(options(space, tmp_path / "one", path="linear", overwrite=True))
    assert not (tmp_path / "one" / "spherical.png").exists()


def test_python_gives_the_frames_of_the_strip(space: Space, tmp_path: Path) -> None:
    interpolate(options(space, tmp_path / "way", path="spherical"))
    pictures = [Image.open(Path(space.photos) / name) for name in ("0003.png", "0004.png")]
    way = interpolate_pictures(load_autoencoder(space.vae), *pictures, steps=STEPS)
    found = np.concatenate([np.asarray(each) for each in way], axis=1).astype(int)
    assert np.abs(np.asarray(Image.open(tmp_path / "way" / "spherical.png")) - found).max() <= 1


def test_what_is_no_picture_is_named(space: Space, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for second, match in ((tmp_path / "broken.png", "second: the image .*broken.png"), (tmp_path / "none", "none")):
        with pytest.raises(ValueError, match=match):
            interpolate(options(space, tmp_path / "out", second=str(second)))
    with pytest.raises(ValueError, match=r"fps is 1e-09; it must lie in \[0\.01, 1000\]"):
        options(space, tmp_path / "out", fps=1e-9)
    with pytest.raises(ValueError, match="resolution is 15, which the model's factor 2 does not divide"):
        interpolate(options(space, tmp_path / "out", resolution=15))
    assert not (tmp_path / "out").exists()
