"""A page stays small beside its pictures, however much there is to show, and says what it leaves out."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from ldm_vae.reporting.limits import Limits
from ldm_vae.reporting.reading import read_sheet
from ldm_vae.reporting.report import write_report
from tests.pictures import noise
from tests.reporting.test_report import MAX_BYTES, Elements, copied, without_pictures

CHANNELS = 64
COLUMNS = ("rec", "perceptual", "kl", "loss", "g", "d", "logits_real", "logits_fake", "lam", "grad_norm", "lr")


def grown(evaluated: Path, folder: Path, *, times: int, data: str) -> Path:
    """Copy an evaluation of two autoencoders as one of `times` as many, of 64 channels, on 300 images of its own."""
    copied(evaluated, folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["evaluations"] *= times
    (pictures,) = metrics["pictures"]
    pictures["spectra"]["reconstructions"] *= times
    metrics["evaluations"] = [
        each | {"data_fingerprint": data, "vae_fingerprint": str(number), "name": f"autoencoder number {number}",
                "channels": {name: [1.0] * CHANNELS for name in each["channels"]}}
        for number, each in enumerate(metrics["evaluations"])
    ]  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(metrics))
    lines = [json.loads(line) for line in (folder / "per_picture.jsonl").read_text("utf-8").split("\n")[:-1]]
    lines += [lines[0] | {"index": 100 + i, "name": f"{i:06d}.png", "kept": None} for i in range(300)]
    with (folder / "per_picture.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line | {"figures": line["figures"] * times}) + "\n" for line in lines)
    strip = io.BytesIO()
    Image.fromarray(noise(4, CHANNELS * 4)).save(strip, "PNG")
    for made in (folder / "pictures").glob("*-[01].webp"):
        stem, _, position = made.stem.rpartition("-")
        for number in range(int(position), 2 * times, 2):
            (folder / "pictures" / f"{stem}-{number}.webp").write_bytes(made.read_bytes())
            (folder / "pictures" / f"{stem}-{number}-latent.png").write_bytes(strip.getvalue())
    return folder


def write_run(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text("output_dir: run\n" + "setting: 1\n" * 1900)
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(100):
            file.write(
                json.dumps({"step": step} | {name: 1 / (step + i + 7) for i, name in enumerate(COLUMNS)}) + "\n"
            )
    return folder


def test_many_channels_of_many_autoencoders_stand_in_one_picture_each(evaluated: Path, tmp_path: Path) -> None:
    folder = grown(evaluated, tmp_path / "many", times=6, data="a")
    page = write_report([folder])
    elements = Elements(page.read_text(encoding="utf-8"))
    assert len(without_pictures(page).encode()) < MAX_BYTES
    assert f"channels 0 to {CHANNELS - 1}, 16 in a row" in elements.text
    sheets = [a for tag, a in elements.tags if tag == "img" and a.get("width") == str(16 * 5 - 1)]
    assert len(sheets) == 12 * 5
    assert {a["height"] for a in sheets} == {str(4 * 5 - 1)}
    assert not any("channels" in (a.get("class") or "").split() for tag, a in elements.tags if tag == "ul")


def test_a_page_of_everything_is_small_and_says_what_it_leaves_out(evaluated: Path, tmp_path: Path) -> None:
    evaluations = [grown(evaluated, tmp_path / name, times=3, data=name) for name in ("a", "b", "c")]
    runs = [write_run(tmp_path / f"run-{number}") for number in range(6)]
    page = write_report([*evaluations, *runs], output=tmp_path / "page.html")
    html = page.read_text(encoding="utf-8")
    assert len(without_pictures(page).encode()) < MAX_BYTES
    assert html.count('class="part comparison"') == 3
    assert html.count("of 307 images, worst first") == 3
    assert html.count("… (the rest is in config.yaml)") == 6


def test_pictures_that_are_left_out_are_told(evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm_vae.reporting.report.Limits", lambda: Limits(reconstructions=7))
    elements = Elements(write_report([evaluated], output=tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "The worst 3 of the 5 pictures that are kept are shown." in elements.text
    assert sum("original" in (a.get("class") or "") for tag, a in elements.tags if tag == "img") == 3
    linked = [a for tag, a in elements.tags if tag == "tr" and a.get("data-picture")]
    assert len(linked) == 5  # rows of pictures that aren't there lead nowhere, which the script sees to


def test_limits_come_to_an_end() -> None:
    limits, halvings = Limits(), 0
    while limits.can_be_less:
        limits, halvings = limits.halved(), halvings + 1
    assert halvings == 6
    assert limits.rows == 3


def test_a_sheet_holds_the_parts_in_rows(tmp_path: Path) -> None:
    strip = Image.new("L", (5 * 3, 2))
    for number in range(5):
        strip.paste(50 * number, (3 * number, 0, 3 * number + 3, 2))
    strip.save(tmp_path / "strip.png")
    sheet = read_sheet(tmp_path, "strip.png", count=5, columns=3)
    assert sheet is not None
    assert (sheet.width, sheet.height) == (3 * 4 - 1, 2 * 3 - 1)
    drawn = Image.open(io.BytesIO(base64.b64decode(sheet.uri.partition(",")[2])))
    found = [drawn.getpixel((4 * (number % 3) + 1, 3 * (number // 3) + 1)) for number in range(6)]
    assert found == [*((50 * number,) * 3 + (255,) for number in range(5)), (0, 0, 0, 0)]
    assert read_sheet(tmp_path, "strip.png", count=4, columns=3) is None
    assert read_sheet(tmp_path, "none.png", count=5, columns=3) is None
