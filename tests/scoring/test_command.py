"""`ldm-vae score`: what each family has, labels, whole pictures, and what is refused or told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from diffusers import AutoencoderKL
from PIL import Image

from ldm_vae.cli import main
from ldm_vae.models.families import FAMILIES
from tests.pictures import picture
from tests.scoring.running import SIDE, lines_of, run
from tests.test_every_family import MODELS
from tests.tiny import tiny_autoencoder, tiny_family


@pytest.mark.parametrize("name", MODELS)
def test_every_family_is_scored_with_what_it_has(name: str, place: Path, tmp_path: Path) -> None:
    fields = {"family": name.split()[0], **MODELS[name]}
    tiny_family(**fields).model.save_pretrained(tmp_path / "vae")
    run(place, tmp_path / "out", vae=str(tmp_path / "vae"), num_maps=0, num_pictures=0, num_images=2, num_normal=2)
    written = json.loads((tmp_path / "out/metrics.json").read_text())
    has_posterior = name in ("kl", "flux2")
    bounds = {"negative_elbo", "complexity_corrected"}
    assert written["scores"].keys() == {"pixel", "pixel_peak"} | (bounds if has_posterior else set())
    assert written["left_out"].keys() == {"perceptual", "perceptual_peak"} | (set() if has_posterior else bounds)
    if not has_posterior:
        assert "has no posterior" in written["left_out"]["negative_elbo"]
        with pytest.raises(ValueError, match="rank_by is negative_elbo, but the autoencoder has no posterior"):
            run(place, tmp_path / "no", vae=str(tmp_path / "vae"), rank_by="negative_elbo")
    assert {family.name for family in FAMILIES.values()} == {each.split()[0] for each in MODELS}


def test_labels_come_from_a_column_or_from_folders(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    rows = ["file_name,state"]
    for i, state in enumerate(("fine", "fine", "cracked", "")):
        picture(30 + i, size=(SIDE, SIDE)).save(flat / f"{i}.png")
        rows.append(f"{i}.png,{state}")
    (flat / "metadata.csv").write_text("\n".join(rows))
    run(place, tmp_path / "column", data=str(flat), label_column="state", normal_label="fine")
    labels = json.loads((tmp_path / "column/metrics.json").read_text())["labels"]
    assert labels == {
        "from": "column state", "normal_label": "fine", "num_normal": 2, "num_anomalies": 1, "num_without": 1
    }  # fmt: skip
    assert {line["name"]: line["label"] for line in lines_of(tmp_path / "column")} == {
        "0.png": "fine", "1.png": "fine", "2.png": "cracked", "3.png": None
    }  # fmt: skip

    for column, normal, match in (
        ("mood", "fine", "label_column is 'mood', which the data don't have; their columns: state"),
        (
            "state",
            "good",
            "normal_label is 'good', which no picture has in the column state; it says 'cracked', 'fine'",
        ),
    ):
        with pytest.raises(ValueError, match=match):
            run(place, tmp_path / "no", data=str(flat), label_column=column, normal_label=normal)

    capsys.readouterr()
    summary = run(place, tmp_path / "folders", normal_label="good")
    assert "no class is called 'good' (they are 'normal', 'odd'), so there is no AUROC" in capsys.readouterr().err
    assert all(result.detection is None for result in summary.results.values())
    assert "AUROC" not in str(summary)


def test_what_makes_thresholds_doubtful_is_told(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(place, tmp_path / "out", data=str(place / "good"), num_normal=3)
    told = capsys.readouterr().err
    assert "of 3 pictures none is expected above the quantile 0.95" in told
    assert "3 pictures of 6 are normal ones too, pixel by pixel" in told


def test_whole_pictures_of_other_channels_have_maps_of_bounded_size(place: Path, tmp_path: Path) -> None:
    tiny_autoencoder(in_channels=1, out_channels=1).save_pretrained(tmp_path / "grey")
    data = tmp_path / "data"
    data.mkdir()
    for i, size in enumerate([(33, 41), (1101, 20)]):
        picture(i, size=size).save(data / f"{i}.png")
    summary = run(place, tmp_path / "out", vae=str(tmp_path / "grey"), data=str(data), resolution=None,
                  compressor="webp", peak_window=1)  # fmt: skip
    assert {each.name: each.size for each in summary.pictures} == {"0.png": (32, 40), "1.png": (1100, 20)}
    assert summary.problem is None
    for line in lines_of(tmp_path / "out"):
        with np.load(tmp_path / "out" / line["map"]) as maps:
            assert maps["pixel"].shape == {"0.png": (40, 32), "1.png": (19, 1024)}[line["name"]]
            assert maps["pixel"].max() == pytest.approx(line["scores"]["pixel_peak"], rel=1e-3)
        assert max(Image.open(tmp_path / "out" / line["picture"]).size) < 4 * 512


def test_mistakes_are_told_in_one_line(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/a.png").write_bytes(b"no picture")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/thesis.tex").write_text("years of work")
    words = {"vae": place / "vae", "data": place / "data", "normal": place / "good", "output": tmp_path / "out",
             "resolution": SIDE, "perceptual": "none", "num_workers": 0}  # fmt: skip
    for changes, status, message in (
        ({"resolution": 33}, 1, "--resolution is 33, which the factor 2 does not divide; take 32 or 34"),
        ({"rank_by": "perceptual"}, 2, "--rank_by is perceptual, but --perceptual is none"),
        ({"quantile": 1}, 2, "--quantile is 1.0; it must lie in (0, 1)"),
        ({"rank_by": "elbo"}, 2, "--rank_by is 'elbo'; it must be one of auto, pixel,"),
        ({"normal": tmp_path / "empty"}, 1, "--normal: none of its pictures can be read; the first: a.png:"),
        ({"normal": tmp_path / "nowhere"}, 1, "--normal"),
        ({"output": tmp_path / "taken"}, 1, "thesis.tex"),
        ({"strict": "true"}, 1, "odd/broken.png can't be read as an image"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["score", *(f"--{name}={value}" for name, value in (words | changes).items())])
        told = capsys.readouterr().err
        assert ended.value.code == status, told
        assert message in told.splitlines()[-1]
        assert not (tmp_path / "out").exists()


def test_what_is_no_number_comes_first_and_ends_with_another_status(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = AutoencoderKL.from_pretrained(place / "vae")
    broken.decoder.conv_out.bias.data[0] = float("nan")
    broken.save_pretrained(tmp_path / "broken")
    words = [
        "score",
        "--vae",
        str(tmp_path / "broken"),
        "--data",
        str(place / "data"),
        "--normal",
        str(place / "good"),
    ]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--output", str(tmp_path / "out"), "--num_workers", "0", "--perceptual", "none"])
    assert ended.value.code == 1
    assert (
        "ldm-vae: vae: 13 of 13 pictures have scores that aren't finite; the first: 0.png" in capsys.readouterr().err
    )
    line = lines_of(tmp_path / "out")[0]
    assert (line["scores"]["pixel"], line["scores"]["pixel_not_finite"]) == (None, "nan")
    assert line["above"]["pixel"] is True
