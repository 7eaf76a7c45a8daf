"""Runs with a codebook: the same codes whatever the processes, bit-equal when resumed, told in the figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ldm_vae.training.health import Health
from ldm_vae.training.loop import train
from ldm_vae.training.meter import MeterReading
from ldm_vae.training.run_autoencoder import load_run_autoencoder
from tests.tiny import tiny_config, tiny_family
from tests.training.drive import run_together
from tests.training.jobs import Job
from tests.training.runs import assert_bit_equal, last_checkpoint, metrics

MODEL = {"family": "vq", "codebook_size": 24, "codebook_decay": 0.8}
CODEBOOK = "quantize.embedding.weight"


def fields(output: Path, pictures: Path, **train: Any) -> dict[str, Any]:
    return {
        "output_dir": str(output),
        "model": MODEL,
        "data": {"train": str(pictures), "validation": str(pictures)},
        "loss": {"reconstruction": "l2"},
        "train": {"adam_epsilon": 1e-4, "log_steps": 1, "checkpointing_steps": 3, **train},
    }


@pytest.mark.processes
def test_codes_do_not_depend_on_processes(pictures: Path, tmp_path: Path) -> None:
    launched = {
        processes: [Job(config=fields(tmp_path / f"{processes}", pictures, micro_batch_size=micro_batch_size))]
        for processes, micro_batch_size in ((1, 4), (2, 1))
    }
    run_together(tmp_path, launched=launched)
    one, two = (last_checkpoint(tmp_path / f"{processes}") for processes in (1, 2))
    codes = [load_file(folder / "autoencoder.safetensors")[CODEBOOK] for folder in (one, two)]
    torch.testing.assert_close(codes[1], codes[0], rtol=0, atol=1e-5)
    usage = [load_file(folder / "terms.safetensors")["codebook.usage"] for folder in (one, two)]
    assert torch.equal(*usage)
    assert len(usage[0].unique()) > 3


def test_an_interrupted_run_goes_on_bit_equal(pictures: Path, tmp_path: Path) -> None:
    train(tiny_config(**fields(tmp_path / "whole", pictures)))
    for steps, resumed in ((3, None), (6, "latest")):
        again = fields(tmp_path / "cut", pictures, max_train_steps=steps, resume_from_checkpoint=resumed)
        train(tiny_config(**again))
    assert_bit_equal(tmp_path / "whole", tmp_path / "cut")
    checkpoint = last_checkpoint(tmp_path / "whole")
    assert torch.equal(*(load_file(checkpoint / f"{name}.safetensors")[CODEBOOK] for name in ("ema", "autoencoder")))

    lines = metrics(tmp_path / "whole")
    assert all(0 < line["codebook_usage"] <= 1 for line in lines if "rec" in line)
    assert all(1 <= line["codebook_perplexity"] <= 24 for line in lines if "rec" in line)
    assert all("commitment" in line and "kl" not in line for line in lines if "rec" in line)
    validations = [line for line in lines if "validation/psnr" in line]
    assert validations[-1]["validation/kl"] is None
    assert 1 <= validations[-1]["validation/codebook_perplexity"] <= 24


def test_decoder_only_leaves_the_codes(pictures: Path, tmp_path: Path) -> None:
    train(tiny_config(**fields(tmp_path / "first", pictures)))
    model = load_run_autoencoder(tmp_path / "first", checkpoint="latest", weights="ema").family.model
    model.save_pretrained(tmp_path / "vae")
    again = fields(tmp_path / "second", pictures)
    train(tiny_config(**again | {"model": {"pretrained": str(tmp_path / "vae"), "decoder_only": True}}))
    found = load_file(last_checkpoint(tmp_path / "second") / "ema.safetensors")
    same = {name for name, value in model.state_dict().items() if torch.equal(value, found[name])}
    assert {name for name in found if name.startswith(("encoder.", "quant"))} <= same
    assert len(same) < len(found)


def test_a_collapsed_codebook_is_told_once() -> None:
    health = Health(disc_loss="hinge", adaptive=True, max_nonfinite_steps=10)

    def lines(usage: float) -> list[str]:
        means = {"codebook_usage": usage, "codebook_perplexity": 3.0}
        reading = MeterReading(means=means, num_finite=1, num_skipped=0, nonfinite={}, row=0)
        return health.lines(reading, step=7)

    assert lines(0.5) == []
    (told,) = lines(0.05)
    assert told.startswith("step 7: codebook: 5.0% of the codes are in use (perplexity 3)")
    assert lines(0.04) == []
    assert lines(0.5) == []
    assert len(lines(0.05)) == 1


def test_levels_of_another_model_are_named(tmp_path: Path) -> None:
    tiny_family(family="vq", codebook_size=16).model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model.fsq_levels are \[4, 3\], but .* has learnt codes"):
        tiny_family(pretrained=str(tmp_path), bottleneck="fsq", fsq_levels=[4, 3])
    with pytest.raises(ValueError, match=r"model.bottleneck is gaussian; the family vq has vq or fsq"):
        tiny_family(family="vq", bottleneck="gaussian")
