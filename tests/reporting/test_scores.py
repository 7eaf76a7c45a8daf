"""The page of scores: what it shows, hostile names escaped, and what is lost or damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm_vae.config.commands.score import ScoreOptions
from ldm_vae.reporting.report import write_report
from ldm_vae.scoring.score import score
from tests.pictures import noise, picture
from tests.reporting.browser import Browser, hold_readable
from tests.reporting.conftest import HOSTILE
from tests.reporting.test_report import MAX_BYTES, Elements, without_pictures
from tests.tiny import tiny_autoencoder


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reported")
    tiny_autoencoder().save_pretrained(folder / "vae")
    for name in ("good", "data/normal", "data/odd"):
        (folder / name).mkdir(parents=True)
        for i in range(3):
            picture(i + len(name), size=(32, 32)).save(folder / name / f"{i}.png")
    Image.fromarray(noise(32, 32, 3)).save(folder / "data/odd" / f"{HOSTILE}.png")
    summary = score(
        ScoreOptions(
            vae=str(folder / "vae"), data=str(folder / "data"), normal=str(folder / "good"), resolution=32,
            output=str(folder / "out"), num_workers=0, perceptual="none", num_pictures=3,
        )
    )  # fmt: skip
    assert summary.report == folder / "out/report.html"
    return folder / "out"


def test_it_shows_scores_thresholds_areas_and_the_highest_as_pictures(scores: Path) -> None:
    page = scores / "report.html"
    elements = Elements(page.read_text(encoding="utf-8"))
    written = json.loads((scores / "metrics.json").read_text())
    for name, result in written["scores"].items():
        assert f"{result['auroc']:.4f}" in elements.text or result["auroc"] == int(result["auroc"])
        assert result["protocol"] in elements.text
        assert name in elements.text
    assert "Nalisnick" in elements.text
    assert "labelled: 4 anomalies, 3 normal" in elements.text
    assert sum(tag == "img" and attributes.get("class") == "sheet" for tag, attributes in elements.tags) == 3
    assert f"odd/{HOSTILE}.png" in elements.text
    assert not [attributes for tag, attributes in elements.tags if tag == "img" and attributes.get("src") == "x"]
    plots = [attributes["aria-label"] for tag, attributes in elements.tags if tag == "svg"]
    assert plots == list(written["scores"])
    assert len(without_pictures(page).encode()) < MAX_BYTES


def test_lost_pictures_are_counted_and_damaged_files_are_one_line(scores: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(scores, tmp_path / "out"))
    (folder / "pictures/0002.png").unlink()
    assert "1 picture file is missing or damaged." in write_report([folder]).read_text(encoding="utf-8")
    lines = (folder / "scores.jsonl").read_text().splitlines()
    (folder / "scores.jsonl").write_text("\n".join([lines[0], '{"name": 3}', ""]))
    with pytest.raises(ValueError, match=r"outputs: .*scores\.jsonl isn't as `ldm-vae score` writes it$"):
        write_report([folder])
    assert np.asarray(Image.open(folder / "pictures/0001.png")).shape[-1] == 3


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1600, "dark")])
def test_the_page_fits_loads_nothing_and_is_accessible(
    browser: Browser, scores: Path, width: int, scheme: str
) -> None:
    page = hold_readable(browser, scores / "report.html", width=width, scheme=scheme)
    table = page.find(".figures")
    box, figure = table.locator("xpath=..").bounding_box(), table.locator("tbody td").first.bounding_box()
    assert figure["x"] + figure["width"] <= box["x"] + box["width"]  # names leave room for a figure beside them
