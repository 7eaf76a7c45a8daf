"""A run on sounds, and its export."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm_vae.config.commands.export import ExportOptions
from ldm_vae.exporting.export import ExportSummary, export
from ldm_vae.training.loop import train
from tests.audio.sounds import sound_config, write_sounds


@pytest.fixture(scope="package")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sounds(tmp_path_factory.mktemp("sounds"), count=7, seconds=0.6)


@pytest.fixture(scope="package")
def run(tmp_path_factory: pytest.TempPathFactory, sounds: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(sound_config(folder, sounds))
    return folder


@pytest.fixture(scope="package")
def exported(tmp_path_factory: pytest.TempPathFactory, run: Path) -> ExportSummary:
    folder = tmp_path_factory.mktemp("exports") / "vae"
    return export(ExportOptions(run=str(run), output=str(folder), num_workers=0))
