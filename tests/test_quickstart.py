"""`quickstart` from its start to its end, with a model and a run that are tiny."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm_vae import quickstart as module
from ldm_vae.config.commands.quickstart import QuickstartOptions
from ldm_vae.config.parsing import dump_config
from ldm_vae.system.output_kinds import QUICKSTART, output_kind
from tests.pictures import save_pictures
from tests.tiny import tiny_config


def test_it_ends_with_the_path_of_a_report_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_config(tiny_config(train={"max_train_steps": 2, "log_steps": 1, "validation_steps": 2})))
    monkeypatch.setattr(module, "RECIPE", str(recipe))
    monkeypatch.setattr(module, "TRAINING_PHOTOGRAPHS", ("chelsea.png",))
    photos = save_pictures(tmp_path / "photos", count=4, size=(40, 40))
    output = tmp_path / "out"
    summary = module.quickstart(QuickstartOptions(output=str(output), data=photos))
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
