"""Compiled networks through a whole run: the GAN's start, a validation with a short last batch, resuming."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from ldm_vae.config.run import Config
from ldm_vae.training.loop import train
from ldm_vae.training.run_autoencoder import load_run_autoencoder
from ldm_vae.training.step import TrainingStep
from tests.audio.sounds import write_sounds
from tests.tiny import tiny_autoencoder, tiny_config
from tests.vision import save_vision

SMOOTH = {"adam_epsilon": 1e-4}
"""With a smaller one, a gradient that is nothing but rounding would make as large an update as any other."""
MODEL = {"block_out_channels": [4], "norm_num_groups": 1, "mid_block_add_attention": False}


def config_of(output_dir: Path, pictures: Path, *, stages: Sequence[dict[str, Any]] = (), **fields: object) -> Config:
    """Return a run of six steps of four images, the first of a smaller size, with the GAN from the third on.

    Every other one of its updates has the gradient penalty, for which D isn't compiled.

    Three batches of the eleven images validate, one of them short.
    """
    return tiny_config(
        output_dir=output_dir,
        model=MODEL,
        data={
            "resolution": 16,
            "early_resolutions": [8],
            "early_fractions": [0.2],
            "train": str(pictures),
            "validation": str(pictures),
        },
        loss={"disc_start": 2, "disc_channels": 4, "disc_num_layers": 1, "disc_r1_weight": 1e-3, "disc_r1_every": 2},
        train={"max_train_steps": 6, **SMOOTH, **fields},
        stages=stages,
    )


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_run_autoencoder(run, checkpoint="latest", weights="raw").family.model.state_dict()


def graphs_after_rehearsals(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Forget what was compiled; return a list that takes the number of graphs after each rehearsal."""
    rehearsed: list[int] = []
    rehearse = TrainingStep.rehearse

    def counted(step: TrainingStep, *, resolution: Any) -> None:
        rehearse(step, resolution=resolution)
        rehearsed.append(counters["stats"]["unique_graphs"])

    monkeypatch.setattr(TrainingStep, "rehearse", counted)
    torch._dynamo.reset()
    counters.clear()
    return rehearsed


def test_compiled_run_is_the_eager_one_and_compiles_at_its_start_only(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graphs run by torch's own kernels, since making others takes minutes."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    rehearsed = graphs_after_rehearsals(monkeypatch)
    for further in ({"max_train_steps": 3}, {"resume_from_checkpoint": "latest"}):
        train(config_of(tmp_path / "compiled", pictures, compile="on", **further))
        # How many graphs there are is the release's affair; that none comes after the last rehearsal is ours.
        assert counters["stats"]["unique_graphs"] == rehearsed[-1]
    assert len(rehearsed) == 4  # of two sizes in each run
    assert rehearsed[0] >= 4  # encoder, decoder, discriminator of one batch and of two
    assert not counters["graph_break"]

    train(config_of(tmp_path / "eager", pictures, compile="off"))
    compiled, eager = weights(tmp_path / "compiled"), weights(tmp_path / "eager")
    for name, weight in eager.items():
        torch.testing.assert_close(compiled[name], weight, rtol=1e-3, atol=1e-4, msg=name)

    # A further stage, of the decoder alone, compiles at its beginning.
    finish = {"model": {"decoder_only": True}, "train": {"max_train_steps": 3}}
    resumed = {"compile": "on", "resume_from_checkpoint": "latest"}
    train(config_of(tmp_path / "compiled", pictures, stages=[{}, finish], **resumed))
    assert len(rehearsed) == 8  # of two sizes in the eager run and in the stage
    assert counters["stats"]["unique_graphs"] == rehearsed[-1]
    assert not counters["graph_break"]


def test_machine_code_of_the_autoencoder_is_the_eager_one(tmp_path: Path, pictures: Path) -> None:
    """Half a minute where torch has compiled none of it before, seconds else."""
    for compile_it in ("on", "off"):
        data = {"resolution": 8, "train": str(pictures)}
        train_fields = {"max_train_steps": 3, "compile": compile_it, **SMOOTH}
        model = {"family": "tiny", "block_out_channels": [4], "layers_per_block": 1, "latent_channels": 2}
        train(tiny_config(output_dir=tmp_path / compile_it, model=model, data=data, loss={"disc_weight": 0.0},
                          train=train_fields))  # fmt: skip
    compiled, eager = weights(tmp_path / "on"), weights(tmp_path / "off")
    for name, weight in eager.items():
        torch.testing.assert_close(compiled[name], weight, rtol=1e-3, atol=1e-4, msg=name)


def test_a_student_of_sounds_and_its_teacher_compile_once_and_learn_as_eager_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graphs run by torch's own kernels, since making others takes a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    sounds = write_sounds(tmp_path / "sounds", count=5, seconds=0.2)
    teacher = {"in_channels": 1, "out_channels": 1, "norm_num_groups": 1, "mid_block_add_attention": False}
    tiny_autoencoder(widths=[4], latent_channels=2, **teacher).save_pretrained(tmp_path / "teacher")

    def run(name: str, **train_fields: object) -> None:
        train(
            tiny_config(
                output_dir=tmp_path / name,
                model={"family": "tiny", "block_out_channels": [4], "layers_per_block": 1, "in_channels": 1,
                       "latent_channels": 2, "teacher": str(tmp_path / "teacher"), "teach_encoder": True},
                data={"train": str(sounds), "validation": str(sounds), "mel_frames": 8, "flip": False},
                loss={"disc_weight": 0.0},
                train=SMOOTH | train_fields,
            )
        )  # fmt: skip

    rehearsed = graphs_after_rehearsals(monkeypatch)
    run("compiled", compile="on", max_train_steps=3)
    run("compiled", compile="on", resume_from_checkpoint="latest")
    assert len(rehearsed) == 2
    assert counters["stats"]["unique_graphs"] == rehearsed[-1]
    assert rehearsed[0] >= 3  # encoder and decoder, and the teacher's encoder
    assert not counters["graph_break"]
    run("eager", compile="off")
    compiled, eager = weights(tmp_path / "compiled"), weights(tmp_path / "eager")
    for name, weight in eager.items():
        torch.testing.assert_close(compiled[name], weight, rtol=1e-3, atol=1e-4, msg=name)


@torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True)
def test_three_frozen_networks_compile_without_breaks_and_once(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is traced, and how often; the graphs run by torch's own kernels, since making others takes minutes.

    There are more graphs than torch allows by itself, beyond which it would run what comes uncompiled.
    """
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    looking = {"alignment": "dinov2", "perceptual": "dinov3", "discriminator": "siglip2"}
    for name in looking.values():
        save_vision(name, tmp_path / name, blocks=1)
    folders = {f"{use}_weights": str(tmp_path / name) for use, name in looking.items()}
    rehearsed = graphs_after_rehearsals(monkeypatch)

    def run(name: str, **train_fields: object) -> None:
        train(
            tiny_config(
                output_dir=tmp_path / name,
                model=MODEL,
                data={"resolution": 16, "train": str(pictures)},
                loss=looking | folders | {"disc_start": 2},
                train={"max_train_steps": 4, **SMOOTH, **train_fields},
            )
        )

    run("compiled", compile="on")
    assert counters["stats"]["unique_graphs"] == rehearsed[-1]
    assert not counters["graph_break"]
    run("eager", compile="off")
    compiled, eager = weights(tmp_path / "compiled"), weights(tmp_path / "eager")
    for name, weight in eager.items():
        torch.testing.assert_close(compiled[name], weight, rtol=1e-3, atol=1e-4, msg=name)
