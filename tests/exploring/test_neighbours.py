"""Neighbours: every row compared by plain NumPy, ties by row, and whatever is read at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_vae import LatentDataset, encode_images, load_autoencoder, nearest_latents
from ldm_vae.config.commands.explore import ExploreNeighboursOptions
from ldm_vae.encoding.encode import encode
from ldm_vae.exploring import neighbours as searching
from ldm_vae.exploring.neighbours import neighbours
from tests import encodings
from tests.exploring.conftest import COUNT, Space
from tests.pictures import picture, save_pictures


def options(space: Space, output: Path, **changes: Any) -> ExploreNeighboursOptions:
    values: dict[str, Any] = {"vae": space.vae, "picture": space.picture, "latents": space.latents, "count": 4}
    return ExploreNeighboursOptions(output=str(output), **values | changes)


def plain_distances(space: Space, latents: str, image: Image.Image, distance: str) -> np.ndarray:
    """Return the distance of a square picture from every row."""
    dataset = LatentDataset(latents, normalize="none")
    rows = np.stack([row.latents.numpy() for row in dataset]).astype(float)
    mean, std = (rows.mean(axis=(0, 2, 3)), rows.std(axis=(0, 2, 3)))
    asked = encode_images(load_autoencoder(space.vae), image, normalize="none")[0].numpy()
    a, b = ((each - mean[:, None, None]) / std[:, None, None] for each in (rows, asked[None]))
    a, b = a.reshape(len(a), -1), b.ravel()
    if distance == "euclidean":
        return np.sqrt(((a - b) ** 2).mean(axis=1))
    return 1 - a @ b / np.linalg.norm(a, axis=1) / np.linalg.norm(b)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("chunk_bytes", [1 << 24, 1])
def test_neighbours_are_those_of_plain_numpy(
    distance: Any, chunk_bytes: int, space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "_CHUNK_BYTES", chunk_bytes)
    summary = neighbours(options(space, tmp_path / "out", distance=distance))
    expected = plain_distances(space, space.latents, encodings.square(Image.open(space.picture)), distance)
    found = json.loads((tmp_path / "out" / "neighbours.json").read_text())
    assert [each["row"] for each in found] == np.argsort(expected, kind="stable")[:4].tolist()
    assert [each["distance"] for each in found] == pytest.approx(np.sort(expected)[:4], rel=1e-3, abs=1e-4)
    assert found[0]["row"] == 3
    assert found[0]["source"] == "0003.png"
    assert f"by {distance} distance among {COUNT} rows; the nearest is row 3, 0003.png" in str(summary)
    assert "cropped to 16x16 pixels" in str(summary)
    record = json.loads((tmp_path / "out" / "explore.json").read_text())
    assert record["distance"]["name"] == distance
    assert Image.open(tmp_path / "out" / "grid.png").width > 6 * 256  # enlarged, to be seen


def test_equal_distances_go_by_row(space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = tmp_path / "photos"
    save_pictures(photos, count=3)
    for name in ("a.png", "0000-again.png", "z.png"):
        shutil.copy(photos / "0001.png", photos / name)
    encode(encodings.options(space.vae, str(photos), tmp_path / "latents"))
    dataset = LatentDataset(tmp_path / "latents")
    same = [number for number in range(len(dataset)) if torch.equal(dataset[number].latents, dataset[2].latents)]
    assert len(same) == 4
    for chunk_bytes in (1 << 24, 1):
        monkeypatch.setattr(searching, "_CHUNK_BYTES", chunk_bytes)
        autoencoder, image = load_autoencoder(space.vae), Image.open(photos / "z.png")
        found = nearest_latents(autoencoder, image, tmp_path / "latents", count=3, resolution=16)
        assert [each.row for each in found] == same[:3]
        assert len({each.distance for each in found}) == 1


def test_no_more_rows_are_read_at_once_than_fit(space: Space) -> None:
    dataset = LatentDataset(space.latents, normalize="none")
    parts = list(searching._chunks(dataset, (4, 8, 8), size=3))
    assert [row for rows in parts for row in rows] == list(range(COUNT))
    assert max(map(len, parts)) == 3


def test_of_a_folder_of_several_shapes_those_of_the_pictures_are_compared(space: Space, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    save_pictures(photos, count=3, size=(40, 20))
    picture(9, size=(20, 40)).save(photos / "tall.png")
    encode(encodings.options(space.vae, str(photos), tmp_path / "latents", buckets=True, bucket_step=4))
    dataset = LatentDataset(tmp_path / "latents", normalize="none")
    shapes = {dataset.shape(row) for row in range(4)}
    assert len(shapes) == 2
    summary = neighbours(
        options(space, tmp_path / "out", latents=str(tmp_path / "latents"), picture=str(photos / "tall.png"))
    )
    found = json.loads((tmp_path / "out" / "neighbours.json").read_text())
    assert [each["source"] for each in found] == ["tall.png"]
    assert found[0]["distance"] < 1e-4
    assert "1 neighbour of" in str(summary)
    assert "; 3 rows of other shapes left out" in str(summary)
    with pytest.raises(ValueError, match="holds no latents of the picture's shape"):
        nearest_latents(load_autoencoder(space.vae), picture(0, size=(16, 16)), dataset)


def test_names_stay_on_one_line(space: Space, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    save_pictures(photos, count=2)
    named = photos / "two\nlines \x1b[2J.png"
    (photos / "0001.png").rename(named)
    encode(encodings.options(space.vae, str(photos), tmp_path / "latents"))
    found = options(space, tmp_path / "out", latents=str(tmp_path / "latents"), picture=str(named), count=1)
    told = str(neighbours(found))
    assert told.isprintable()
    assert r"two\nlines \x1b[2J.png, at" in told


def test_latents_of_another_autoencoder_are_refused(space: Space, tmp_path: Path) -> None:
    other = encodings.save_vae(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=r"encoded by another autoencoder.*other_vae searches"):
        neighbours(options(space, tmp_path / "out", vae=other))
    neighbours(options(space, tmp_path / "out", vae=other, other_vae=True))
