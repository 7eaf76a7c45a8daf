"""Augmented collections: labels, captions and columns as before, and draws that the name and the seed decide."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from ldm_vae import augment_pictures, load_autoencoder
from ldm_vae.config.commands.explore import ExploreAugmentOptions
from ldm_vae.exploring.augment import Variation, augment
from ldm_vae.images.collection import open_collection
from ldm_vae.system.output_kinds import AUGMENTATION, output_kind
from tests.exploring.conftest import Space
from tests.pictures import encoded, picture


def options(space: Space, data: Path | str, output: Path, **changes: Any) -> ExploreAugmentOptions:
    values: dict[str, Any] = {"resolution": 16, "num_workers": 0, "copies": 2}
    return ExploreAugmentOptions(vae=space.vae, data=str(data), output=str(output), **values | changes)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Pictures of two classes, two of which would get one name, with captions and a table."""
    data = tmp_path / "data"
    names = ["cat/a.png", "cat/a.jpg", "cat/b.png", "dog/c.png", "dog/d.png"]
    for number, name in enumerate(names):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(data / name)
    (data / "dog/c.txt").write_text("a dog, seen from above")
    (data / "dog/d.png").write_bytes(b"no picture")
    with open(data / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file_name", "camera"], *([name, f"camera {name}"] for name in names)])
    return data


def test_labels_captions_and_columns_are_kept(space: Space, labelled: Path, tmp_path: Path) -> None:
    summary = augment(options(space, labelled, tmp_path / "more"))
    assert (summary.num_pictures, summary.num_variants) == (4, 8)
    assert "8 variants of 4 pictures" in str(summary)
    assert "1 picture skipped; the first: dog/d.png" in str(summary)
    assert json.loads((tmp_path / "more" / "skipped.jsonl").read_text())["name"] == "dog/d.png"
    assert output_kind(tmp_path / "more") is AUGMENTATION
    before, after = open_collection(str(labelled)), open_collection(str(tmp_path / "more"))
    assert after.label_names == before.label_names == ["cat", "dog"]
    told = json.loads((tmp_path / "more" / "augmented.json").read_text())["sources"]
    originals = {before.name(i): i for i in range(len(before))}
    assert len(after) == 8
    for i in range(8):
        stem, _, copy = after.name(i).removesuffix(".png").rpartition("-")
        assert copy in "01"
        original = originals[told[stem]]
        assert after.label(i) == before.label(original)
        for column in ("text", "camera"):
            assert after.row(i)[column] == before.row(original)[column]
        assert after.size(i, channels=3) == (16, 16)


def test_classes_without_folders_are_kept_by_number_and_name(space: Space, tmp_path: Path) -> None:
    features = Features({"image": ImageFeature(), "kind": ClassLabel(names=["x", "y"]), "note": Value("string")})
    rows = {"image": [{"bytes": encoded(picture(i), "PNG"), "path": f"../../up/{i}.png"} for i in range(3)]}
    rows |= {"kind": [1, 0, 1], "note": ["one", "two", "three"]}  # type: ignore[dict-item]
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data.parquet")
    augment(options(space, tmp_path / "data.parquet", tmp_path / "more", copies=1))
    lines = [json.loads(line) for line in (tmp_path / "more" / "metadata.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["label_name"], line["note"]) for line in lines] == [
        (1, "y", "one"), (0, "x", "two"), (1, "y", "three"),
    ]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "more" / "up").iterdir()) == [f"{i}-0.png" for i in range(3)]


def test_a_variant_is_a_function_of_seed_name_and_number(space: Space, tmp_path: Path) -> None:
    few, many = tmp_path / "few", tmp_path / "many"
    for folder, names in ((few, ["m.png"]), (many, ["a.png", "m.png", "z.png"])):
        folder.mkdir()
        for name in names:
            picture(1).save(folder / name)
    for output, data, changes in (
        ("one", few, {}), ("again", few, {}), ("of many", many, {"batch_size": 1}), ("seed", few, {"seed": 1}),
    ):  # fmt: skip
        augment(options(space, data, tmp_path / output, **changes))
    variants = {
        (output, name): (tmp_path / output / name).read_bytes()
        for output in ("one", "again", "of many", "seed")
        for name in ("m-0.png", "m-1.png")
    }
    for name in ("m-0.png", "m-1.png"):
        assert variants["one", name] == variants["again", name] == variants["of many", name]
        assert variants["one", name] != variants["seed", name]
        assert variants["one", name] != (tmp_path / "of many" / f"a{name[1:]}").read_bytes()
    assert variants["one", "m-0.png"] != variants["one", "m-1.png"]
    (two,) = augment_pictures(
        load_autoencoder(space.vae), Image.open(few / "m.png"), names=["m.png"], copies=2, resolution=16
    )
    for copy, made in enumerate(two):
        written = np.asarray(Image.open(tmp_path / "one" / f"m-{copy}.png")).astype(int)
        assert np.abs(written - np.asarray(made)).max() <= 1


def test_variants_have_the_posteriors_and_the_moves_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, std = torch.randn(3, 4, 4, generator=generator), torch.rand(3, 4, 4, generator=generator)
    own = mean.flatten(1).std(dim=1, correction=0)[:, None, None]
    for posterior, move in ((True, 0.0), (False, 0.5), (True, 0.5)):
        variation = Variation(posterior=posterior, move=move, seed=3)
        drawn = torch.stack([variation.of(mean, std, name="x", copy=copy) for copy in range(500)])
        spread = torch.sqrt((std**2 if posterior else 0) + (move * own) ** 2)
        z = ((drawn - mean) / spread).double()
        assert z.mean().item() == pytest.approx(0, abs=5 / math.sqrt(z.numel()))
        assert z.var().item() == pytest.approx(1, abs=5 * math.sqrt(2 / z.numel()))
    assert torch.equal(Variation(posterior=False, move=0, seed=0).of(mean, std, name="x", copy=0), mean)


def test_nothing_is_overwritten(space: Space, labelled: Path, tmp_path: Path) -> None:
    augment(options(space, labelled, tmp_path / "more", copies=3))
    mine = tmp_path / "more" / "cat" / "mine.png"
    picture(0).save(mine)
    with pytest.raises(ValueError, match="holds other things"):
        augment(options(space, labelled, tmp_path / "more"))
    augment(options(space, labelled, tmp_path / "more", copies=1, overwrite=True))
    assert mine.is_file()
    assert sorted(path.name for path in (tmp_path / "more" / "dog").iterdir()) == ["c-0.png"]
    with pytest.raises(ValueError, match=r"holds metadata.csv|holds other things"):
        augment(options(space, labelled, labelled))
    assert len(list((labelled / "cat").iterdir())) == 3


def test_variants_that_would_not_vary_are_refused(space: Space, labelled: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="posterior is off, so that move 0 leaves every variant the reconstruction"):
        augment(options(space, labelled, tmp_path / "more", posterior=False, move=0.0))
    assert not (tmp_path / "more").exists()
