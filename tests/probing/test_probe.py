"""`probe` on tiny autoencoders: figures twice the same, interrupted, by two processes, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ldm_vae.config.commands.encode import EncodeOptions
from ldm_vae.config.commands.leaderboard import LeaderboardOptions
from ldm_vae.config.commands.probe import ProbeOptions
from ldm_vae.encoding.encode import encode
from ldm_vae.panel.measures import MEASURES
from ldm_vae.probing import protocol as protocols
from ldm_vae.probing import train as training
from ldm_vae.probing.leaderboard import leaderboard
from ldm_vae.probing.probe import probe
from ldm_vae.probing.results import ProbeSummary
from ldm_vae.system.output_kinds import PROBE, output_kind
from tests.launching import ROOT, run_launch
from tests.pictures import save_pictures
from tests.reporting.browser import Browser, hold_readable
from tests.tiny import tiny_autoencoder

SIDE = 16


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data") / "photos"
    save_pictures(folder, count=11, size=(SIDE, SIDE))
    (folder / "0003.png").write_bytes(b"no picture")
    return str(folder)


@pytest.fixture(scope="module")
def vaes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("vaes")
    tiny_autoencoder().save_pretrained(folder / "f2")
    tiny_autoencoder(widths=(8, 8, 8), latent_channels=3).save_pretrained(folder / "f4")
    return [str(folder / name) for name in ("f2", "f4")]


def options(vaes: list[str], photos: str, output: Path, **changes: Any) -> ProbeOptions:
    values: dict[str, Any] = {"resolution": SIDE, "steps": 2, "num_samples": 6, "batch_size": 4, "num_workers": 0}
    values |= {"perceptual": "none", "mixed_precision": "no", "panel_images": 0}
    return ProbeOptions(vae=vaes, data=photos, output=str(output), **values | changes)


def figures(summary: ProbeSummary) -> list[dict[str, Any]]:
    entries = json.loads(summary.metrics.read_text())["autoencoders"]
    for entry in entries:
        for each in entry["trainings"]:
            del each["seconds"]
    return entries


@pytest.fixture(scope="module")
def first(vaes: list[str], photos: str, tmp_path_factory: pytest.TempPathFactory) -> ProbeSummary:
    return probe(options(vaes, photos, tmp_path_factory.mktemp("first") / "out", panel_images=8))


def test_what_is_written(first: ProbeSummary) -> None:
    folder = first.metrics.parent
    assert sorted(path.name for path in folder.iterdir()) == [
        "metrics.json", "probe.json", "report.html", "samples.png", "table.md",
    ]  # fmt: skip
    assert output_kind(folder) is PROBE
    metrics = json.loads(first.metrics.read_text())
    assert metrics["reference"] == "f2"
    assert metrics["scores"] == ["fd_efficientnet_lite0", "kd_efficientnet_lite0"]
    assert [skip["name"] for skip in metrics["skipped"]] == ["0003.png"]
    recorded = metrics["protocol"]
    assert recorded["probe"]["grid"] == 4  # of sides 8 and 4
    assert recorded["probe"]["steps"] == 2
    assert recorded["probe"]["features"][0].startswith("efficientnet_lite0: ")
    assert recorded["panel"]["num_images"] == 8
    f2, f4 = metrics["autoencoders"]
    assert f2["latent_shape"] == [4, 8, 8]
    assert f4["latent_shape"] == [3, 4, 4]
    assert [each["seed"] for each in f4["trainings"]] == [0, 1]
    scores = [each["scores"]["fd_efficientnet_lite0"] for each in f4["trainings"]]
    assert scores[0] != scores[1]
    assert f4["scores"]["fd_efficientnet_lite0"]["mean"] == pytest.approx(sum(scores) / 2)
    assert f2["reconstruction"]["fd_efficientnet_lite0"] > 0
    assert "loss" not in first.metrics.read_text().replace("loss of", "")
    assert set(f2["panel"]["figures"]) < set(MEASURES)
    table = (folder / "table.md").read_text()
    assert "| verdict" in table
    assert "| equivariance_rotation" in table
    assert recorded["sha256"][:12] in table
    assert Image.open(folder / "samples.png").height > 8 * SIDE
    assert str(first).startswith(table.strip()[:50])


def test_its_report_has_scores_verdicts_samples_and_the_panel(first: ProbeSummary) -> None:
    assert first.report == first.metrics.parent / "report.html"
    page = first.report.read_text(encoding="utf-8")
    metrics = json.loads(first.metrics.read_text())
    f4 = metrics["autoencoders"][1]["scores"]["fd_efficientnet_lite0"]
    assert f"{f4['verdict']}, {f4['difference']:+.4g}" in page
    assert "4 × 8 × 8" in page
    assert page.count("data:image/png;base64,") == 1  # the samples
    assert "Fréchet distance (efficientnet_lite0) of samples" in page
    assert "mean over images of the PSNR of D(E(x)) to x" in page
    assert "Spectrum of the latents" in page


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1600, "light")])
def test_its_report_is_readable(browser: Browser, first: ProbeSummary, width: int, scheme: str) -> None:
    assert first.report is not None
    hold_readable(browser, first.report, width=width, scheme=scheme)


def test_the_same_call_gives_the_same_figures(
    first: ProbeSummary, vaes: list[str], photos: str, tmp_path: Path
) -> None:
    again = probe(options(vaes, photos, tmp_path / "again", panel_images=8, report=False))
    assert figures(again) == figures(first)
    assert again.report is None
    assert not (tmp_path / "again" / "report.html").exists()
    assert (tmp_path / "again" / "samples.png").read_bytes() == (first.metrics.parent / "samples.png").read_bytes()


def test_an_interrupted_probe_goes_on_to_the_same_figures(
    first: ProbeSummary, vaes: list[str], photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = options(vaes, photos, tmp_path / "out", panel_images=8)
    update = training._Training.update
    calls = 0

    def stop_at(number: int) -> None:
        def stopping(self: training._Training) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if calls == number:
                raise KeyboardInterrupt
            return update(self)

        monkeypatch.setattr(training._Training, "update", stopping)

    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    stop_at(2)
    with pytest.raises(KeyboardInterrupt):
        probe(asked)
    assert [path.name for path in (tmp_path / "out" / "work").glob("training-*")] == ["training-0-0.safetensors"]
    calls = 0
    stop_at(5)  # one of four trainings' eight steps was made
    with pytest.raises(KeyboardInterrupt):
        probe(asked)
    with pytest.raises(ValueError, match=r"unfinished probe that was asked for otherwise \(steps 2 and 3\)"):
        probe(options(vaes, photos, tmp_path / "out", panel_images=8, steps=3))
    calls = 0
    stop_at(4)  # 3 steps are left
    assert figures(probe(asked)) == figures(first)
    assert calls == 3


@pytest.mark.processes
def test_two_processes_find_what_one_finds(first: ProbeSummary, vaes: list[str], photos: str, tmp_path: Path) -> None:
    asked = options(vaes, photos, tmp_path / "both", panel_images=8)
    run_launch(probe, asked, folder=tmp_path)
    both = json.loads((tmp_path / "both" / "metrics.json").read_text())
    alone = json.loads(first.metrics.read_text())
    assert both["protocol"] == alone["protocol"]
    for two, one in zip(both["autoencoders"], alone["autoencoders"], strict=True):
        assert two["panel"] == one["panel"]
        assert two["reconstruction"] == one["reconstruction"]
        for other, each in zip(two["trainings"], one["trainings"], strict=True):
            assert other["scores"] == pytest.approx(each["scores"], rel=1e-3)  # gradients are added in another order


def test_latents_that_encode_wrote(first: ProbeSummary, vaes: list[str], photos: str, tmp_path: Path) -> None:
    for name, vae in zip("ab", vaes, strict=True):
        encode(
            EncodeOptions(
                vae=vae, data=photos, output=str(tmp_path / name), resolution=SIDE, dtype="float32", batch_size=4,
                num_workers=0, mixed_precision="no",
            )
        )  # fmt: skip
    folders = [str(tmp_path / name) for name in "ab"]
    summary = probe(options(vaes, photos, tmp_path / "out", latents=folders))
    for found, expected in zip(summary.probed, first.probed, strict=True):
        for one, two in zip(found.trainings, expected.trainings, strict=True):
            assert one.scores == pytest.approx(two.scores, rel=1e-3)
    with pytest.raises(ValueError, match=r"latents .*b was encoded by another autoencoder"):
        probe(options(vaes, photos, tmp_path / "swapped", latents=folders[::-1]))
    with pytest.raises(ValueError, match="names 1 folders for 2 autoencoders"):
        options(vaes, photos, tmp_path / "few", latents=folders[:1])


def test_panel_alone_and_budgets(vaes: list[str], photos: str, tmp_path: Path) -> None:
    summary = probe(options(vaes[1:], photos, tmp_path / "out", reference=vaes[0], no_diffusion=True, panel_images=4))
    metrics = json.loads(summary.metrics.read_text())
    assert metrics["reference"] == "f2"
    assert metrics["protocol"]["probe"] is None
    assert metrics["scores"] == []
    assert "verdict" not in summary.table
    with pytest.raises(ValueError, match="holds a probe already; overwrite replaces it"):
        probe(options(vaes, photos, tmp_path / "out"))
    with pytest.raises(ValueError, match="nothing would be measured"):
        options(vaes, photos, tmp_path / "nothing", no_diffusion=True)
    with pytest.raises(ValueError, match="both say how long to train"):
        options(vaes, photos, tmp_path / "both", seconds=1.0)
    with pytest.raises(ValueError, match=r"resolution is 18, which f4's factor 4 does not divide; take 16 or 20"):
        probe(options(vaes, photos, tmp_path / "odd", resolution=18))


def test_seconds_become_the_same_steps_for_all(vaes: list[str], photos: str, tmp_path: Path) -> None:
    summary = probe(options(vaes, photos, tmp_path / "out", steps=None, seconds=0.5, seeds=1))
    steps = json.loads(summary.metrics.read_text())["protocol"]["probe"]["steps"]
    assert 1 <= steps < 1000


def test_the_control_is_told_where_the_budget_cannot(vaes: list[str], photos: str, tmp_path: Path) -> None:
    summary = probe(options(vaes[:1], photos, tmp_path / "out", control=True))  # two steps tell nothing
    assert [each.name for each in summary.probed] == ["f2", "f2 (control)"]
    assert summary.problem is not None
    assert "this budget is too small" in summary.problem
    reconstruction = [each.reconstruction["fd_efficientnet_lite0"] for each in summary.probed]
    assert reconstruction[1] == pytest.approx(reconstruction[0], rel=1e-2)


def test_leaderboard(first: ProbeSummary, vaes: list[str], photos: str, tmp_path: Path) -> None:
    one = probe(options(vaes[:1], photos, tmp_path / "one", steps=1, seeds=1))
    tiny_autoencoder(widths=(8, 8, 8), latent_channels=3, seed=1).save_pretrained(tmp_path / "another")
    two = probe(options([str(tmp_path / "another")], photos, tmp_path / "two", steps=1, seeds=1))
    with pytest.raises(ValueError, match=r"two was probed otherwise than .*one: probe.grid 8 and 4; figures of diff"):
        leaderboard(LeaderboardOptions(probes=[str(tmp_path / "one"), str(tmp_path / "two")]))
    third = probe(options([vaes[1]], photos, tmp_path / "three", steps=1, seeds=1))
    folders = [str(each.metrics.parent) for each in (two, third, third)]
    summary = leaderboard(LeaderboardOptions(probes=folders, output=str(tmp_path / "table.md")))
    rows = summary.table.splitlines()[2:4]
    assert {row.split("|")[1].strip() for row in rows} == {"another", "f4"}
    means = [float(row.split("|")[3].split("±")[0]) for row in rows]
    assert means == sorted(means)
    assert (tmp_path / "table.md").read_text().strip() == summary.table
    with pytest.raises(ValueError, match="is there already"):
        leaderboard(LeaderboardOptions(probes=folders, output=str(tmp_path / "table.md")))

    content = json.loads(two.metrics.read_text())
    content["protocol"]["probe"]["steps"] = 1000
    (tmp_path / "forged").mkdir()
    (tmp_path / "forged" / "metrics.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="a protocol that its hash isn't of"):
        leaderboard(LeaderboardOptions(probes=[str(tmp_path / "forged")]))
    with pytest.raises(ValueError, match="can't be read"):
        leaderboard(LeaderboardOptions(probes=[str(tmp_path / "nowhere")]))
    assert one.metrics.exists()
    assert first.metrics.exists()


def test_documents_have_every_measure_and_budget() -> None:
    text = (ROOT / "docs" / "probe.md").read_text()
    named = [name.rpartition("_0.")[0] if "_0." in name else name for name in MEASURES]
    assert [name for name in named if f"`{name}" not in text] == []
    for budget in protocols.BUDGETS.values():
        assert f"{budget.steps:,}" in text
