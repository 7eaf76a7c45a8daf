"""`quickstart` from its start to its end, with a model and a run that are tiny."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ldm_vae import quickstart as module
from ldm_vae.cli import main
from ldm_vae.config.commands.quickstart import QuickstartOptions
from ldm_vae.config.parsing import dump_config
from ldm_vae.images.training import TrainingBatch
from ldm_vae.system.output_kinds import QUICKSTART, output_kind
from ldm_vae.training.checkpoint_files import check_whole
from ldm_vae.training.step import TrainingStep
from tests.pictures import save_pictures
from tests.tiny import tiny_config
from tests.training.runs import metrics


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Pictures to train on, and a recipe of two updates in the place of the quickstart's."""
    recipe = tmp_path / "recipe.yaml"
    model = {"mid_block_add_attention": False}  # which would look at all of the photograph that is kept out
    train = {"max_train_steps": 2, "log_steps": 1, "validation_steps": 2}
    recipe.write_text(dump_config(tiny_config(model=model, train=train)))
    monkeypatch.setattr(module, "RECIPE", str(recipe))
    monkeypatch.setattr(module, "TRAINING_PHOTOGRAPHS", ("chelsea.png",))
    return save_pictures(tmp_path / "photos", count=4, size=(40, 40))


def test_it_ends_with_the_path_of_a_report_of_all(photos: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    summary = module.quickstart(QuickstartOptions(output=str(output), data=photos))
    assert isinstance(summary, module.QuickstartSummary)
    assert summary.report == output / "report.html"
    assert str(summary).splitlines()[-1].split() == [
        "report,",
        "to",
        "open",
        "in",
        "a",
        "browser",
        str(summary.report),
    ]
    page = summary.report.read_text(encoding="utf-8")
    assert f"{summary.psnr:.2f}" in page  # the evaluation
    assert "coffee.png" in page
    assert "2 updates" in page  # the run
    assert output_kind(output) is QUICKSTART
    assert {path.name for path in output.iterdir()} == {
        ".ldm-vae-quickstart", "photographs", "run", "export", "latents", "decoded", "evaluation", "report.html",
    }  # fmt: skip
    with pytest.raises(ValueError, match="overwrite"):
        module.quickstart(QuickstartOptions(output=str(output), data=photos))


def test_a_signal_stops_it_and_its_last_line_goes_on(
    photos: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "my output"
    with monkeypatch.context() as patch:
        update = TrainingStep.__call__

        def signalled(step: TrainingStep, batches: Iterator[TrainingBatch]) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            update(step, batches)

        patch.setattr(TrainingStep, "__call__", signalled)
        main(["quickstart", "--output", str(output), "--data", photos, "--report", "false"])  # status 0, as of `train`
    stopped, _, command = capsys.readouterr().out.splitlines()[-1].partition("; go on with ldm-vae ")
    kept = output / "run" / "checkpoint-000001"
    assert stopped == f"Stopped by SIGTERM after 1 step, saved in {kept}"
    check_whole(kept)
    assert {path.name for path in output.iterdir()} == {".ldm-vae-quickstart", "photographs", "run"}

    main(shlex.split(command))
    printed = capsys.readouterr().out
    assert f"Resumed from {kept}" in printed
    assert "Trained for 2 steps" in printed
    assert (output / "evaluation" / "metrics.json").is_file()
    assert [line["step"] for line in metrics(output / "run") if "loss" in line] == [1, 2]
    assert not (output / "report.html").exists()


def test_what_holds_no_stopped_quickstart_is_not_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^resume: .*out holds no quickstart that was stopped while it trained"):
        module.quickstart(QuickstartOptions(output=str(tmp_path / "out"), resume=True))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"^resume goes on with what overwrite removes"):
        QuickstartOptions(output=str(tmp_path / "out"), resume=True, overwrite=True)
