"""Edits: the direction is the difference of plain means, and outside of a mask nothing changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ldm_vae import decode_latents, edit_pictures, encode_images, latent_direction, load_autoencoder
from ldm_vae.config.commands.explore import ExploreEditOptions
from ldm_vae.exploring.edit import edit
from tests.exploring.conftest import Space
from tests.pictures import picture, save_pictures

SIDE = 16
BOX = (4, 5, 11, 9)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("examples")
    towards = save_pictures(folder / "towards", count=3, size=(20, 20), first_seed=100)
    (folder / "towards" / "broken.png").write_bytes(b"no picture")
    return towards, save_pictures(folder / "away", count=2, size=(18, 24), first_seed=200)


def options(space: Space, examples: tuple[str, str], output: Path, **changes: Any) -> ExploreEditOptions:
    values: dict[str, Any] = {"data": space.photos, "resolution": SIDE, "num_workers": 0, "num_images": 2}
    values |= {"towards": examples[0], "away_from": examples[1]}
    return ExploreEditOptions(vae=space.vae, output=str(output), **values | changes)


def plain_means(vae: str, folders: tuple[str, str]) -> list[Tensor]:
    """Return the latents [n, c, h, w] of each folder's pictures, averaged over pictures."""
    autoencoder, means = load_autoencoder(vae), []
    for folder in folders:
        pictures = [Image.open(path) for path in sorted(Path(folder).glob("[0-9]*.png"))]
        means.append(encode_images(autoencoder, pictures, resolution=SIDE, normalize="none").mean(dim=0))
    return means


def pixels(folder: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(folder / "pictures" / name)).astype(int)


@pytest.mark.parametrize("kind", ["channel", "map"])
def test_direction_is_the_difference_of_means_and_pictures_go_along_it(
    kind: Any, space: Space, examples: tuple[str, str], tmp_path: Path
) -> None:
    summary = edit(options(space, examples, tmp_path / "out", direction=kind, strength=[2.0, -1.0]))
    assert "2 pictures changed along the difference of the mean latents of 3 examples and 2" in str(summary)
    assert "1 picture skipped; the first: broken.png" in str(summary)
    towards, away_from = plain_means(space.vae, examples)
    expected = towards - away_from
    expected = expected if kind == "map" else expected.mean(dim=(1, 2), keepdim=True)
    direction = load_file(tmp_path / "out" / "direction.safetensors")["direction"]
    torch.testing.assert_close(direction, expected, rtol=1e-4, atol=1e-5)
    autoencoder = load_autoencoder(space.vae)
    latent = encode_images(autoencoder, Image.open(Path(space.photos) / "0000.png"), resolution=SIDE, normalize="none")
    for name, strength in (("0000-reconstruction.png", 0), ("0000-+2.png", 2), ("0000--1.png", -1)):
        plain = np.asarray(decode_latents(autoencoder, latent + strength * direction, normalize="none")[0])
        assert np.abs(pixels(tmp_path / "out", name) - plain).max() <= 1
    record = json.loads((tmp_path / "out" / "explore.json").read_text())
    assert record["examples"] == {"towards": 3, "away_from": 2}
    assert record["pictures"][0]["files"] == [f"pictures/0000-{end}.png" for end in ("reconstruction", "+2", "-1")]
    assert Image.open(tmp_path / "out" / "grid.png").height > 2 * SIDE


def test_outside_of_the_mask_a_picture_is_its_reconstruction(
    space: Space, examples: tuple[str, str], tmp_path: Path
) -> None:
    edit(options(space, examples, tmp_path / "box", box=list(BOX), strength=[5.0]))
    left, top, right, bottom = BOX
    inside = np.zeros((SIDE, SIDE), dtype=bool)
    inside[top:bottom, left:right] = True
    Image.fromarray(np.uint8(inside) * 255).save(tmp_path / "mask.png")
    edit(options(space, examples, tmp_path / "mask", mask=str(tmp_path / "mask.png"), strength=[5.0]))
    edit(options(space, examples, tmp_path / "whole", strength=[5.0]))
    for name in ("0000", "0004"):
        edited, reconstruction = (pixels(tmp_path / "box", f"{name}-{end}.png") for end in ("+5", "reconstruction"))
        assert (edited[~inside] == reconstruction[~inside]).all()
        assert (edited[inside] != reconstruction[inside]).any()
        whole = pixels(tmp_path / "whole", f"{name}-+5.png")
        assert (whole[~inside] != reconstruction[~inside]).any()
        files = [(tmp_path / way / "pictures" / f"{name}-+5.png").read_bytes() for way in ("box", "mask")]
        assert files[0] == files[1]


def test_python_edits_alike(space: Space, examples: tuple[str, str], tmp_path: Path) -> None:
    edit(options(space, examples, tmp_path / "out", box=list(BOX), num_images=1))
    autoencoder = load_autoencoder(space.vae)
    folders = [[Image.open(path) for path in sorted(Path(folder).glob("[0-9]*.png"))] for folder in examples]
    direction = latent_direction(autoencoder, *folders, resolution=SIDE)
    torch.testing.assert_close(direction, load_file(tmp_path / "out" / "direction.safetensors")["direction"])
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[BOX[1] : BOX[3], BOX[0] : BOX[2]] = True
    photo = Image.open(Path(space.photos) / "0000.png")
    (edited,) = edit_pictures(autoencoder, photo, direction, mask=mask, resolution=SIDE)
    assert np.abs(np.asarray(edited).astype(int) - pixels(tmp_path / "out", "0000-+1.png")).max() <= 1
    with pytest.raises(ValueError, match="doesn't fit latents"):
        edit_pictures(autoencoder, photo, torch.zeros(3, 1, 1))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"box": [0, 0, 17, 4]}, "box is .*16x16 pixels"),
        ({"mask": "small.png", "resolution": None}, "mask covers 8x8 pixels and the picture has 24x20"),
        ({"towards": "empty"}, "towards.*holds no image"),
        ({"strict": True}, "towards: the image broken.png can't be read"),
        ({"mask": "black.png"}, "mask black.png is nowhere white, so that nothing may change"),
        ({"towards": "same", "away_from": "same"}, "towards same and away_from same have the same mean latent"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(
    changes: dict[str, Any],
    match: str,
    space: Space,
    examples: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    picture(0, size=(8, 8), mode="L").save("small.png")
    Image.new("L", (8, 8)).save("black.png")
    save_pictures(tmp_path / "same", count=1)
    with pytest.raises(ValueError, match=match):
        edit(options(space, examples, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"box": [3, 3, 3, 8]}, "must be left, top, right and bottom"),
        ({"box": [0, 0, 4, 4], "mask": "x.png"}, "mask and box both"),
        ({"direction": "map", "resolution": None}, "give a resolution"),
        ({"strength": [1.0, 1.0]}, "name each number once"),
        ({"strength": []}, "strength is empty"),
    ],
)
def test_options_that_contradict(changes: dict[str, Any], match: str, space: Space, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        options(space, ("a", "b"), tmp_path / "out", **changes)
