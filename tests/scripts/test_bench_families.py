"""What the comparison of families trains: recipes that are alike but for the model."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from ldm_vae.config.parsing import parse
from ldm_vae.config.run import Config
from ldm_vae.models.build import build_autoencoder
from tests.launching import SCRIPTS


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield importlib.import_module("bench_families")


def test_families_differ_in_their_models_alone_and_build(bench: ModuleType) -> None:
    small = {"updates": 70, "resolution": 64, "width": 16}
    args = argparse.Namespace(output=Path("out put"), train="photos", options="--seed 3", **small)
    configs = {
        name: parse(Config, bench.training_arguments(name, args), prog="bench_families") for name in bench.FAMILIES
    }
    first = configs["KL f8c4"]
    for config in configs.values():
        assert (config.data, config.loss, config.train, config.seed) == (first.data, first.loss, first.train, 3)
    assert (first.train.max_train_steps, first.data.resolution, first.train.mixed_precision) == (70, 64, "no")
    assert configs["DC f32"].model.block_out_channels == [16, 32, 32, 32, 64, 64]
    distilled = configs["Tiny distilled"].model
    assert (distilled.teacher, distilled.teach_encoder) == ("out put/exports/kl-f8c4", True)
    built = {name: build_autoencoder(config.model) for name, config in configs.items()}
    found = {name: (family.name, family.spatial_factor, family.latent_channels) for name, family in built.items()}
    assert found == {
        "KL f8c4": ("kl", 8, 4),
        "KL f8c16": ("kl", 8, 16),
        "Flux2 f8c32": ("flux2", 8, 32),
        "VQ f8": ("vq", 8, 4),
        "FSQ f8": ("vq", 8, 4),
        "DC f32": ("dc", 32, 32),
        "Tiny distilled": ("tiny", 8, 4),
    }
    assert (built["VQ f8"].codebook_size, built["FSQ f8"].codebook_size) == (1024, 1000)
    assert built["FSQ f8"].bottleneck.name == "fsq"
