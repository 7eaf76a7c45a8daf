"""A checkpoint holds all of a state, is whole or absent, and fits the model that takes it up."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from ldm_vae.training import checkpoint as module
from ldm_vae.training.checkpoint import load_checkpoint, save_checkpoint
from ldm_vae.training.checkpoint_files import CheckpointError, latest_checkpoint
from ldm_vae.training.processes import weights_digest
from ldm_vae.training.run_autoencoder import load_run_autoencoder
from ldm_vae.training.run_folder import RunFolder
from ldm_vae.training.state import BestValidation, TrainingState, build_state
from tests.tiny import tiny_config
from tests.training.checkpoints import names, plan_of, save_at, trained
from tests.training.steps import make_batch


def test_loaded_state_is_the_saved_one_and_goes_on_like_it(tmp_path: Path) -> None:
    """Everything, memory formats included: the next steps are bit-equal."""
    saved, step = trained(steps=3)
    saved.best = BestValidation(step=2, metric="psnr", value=12.5)
    loaded, other_step = trained(steps=0, seed=1)
    assert weights_digest(loaded) != weights_digest(saved)
    load_checkpoint(loaded, save_checkpoint(saved, RunFolder(tmp_path), plan_of()))
    assert (loaded.step, loaded.best, loaded.lam.item()) == (3, saved.best, saved.lam.item())
    assert loaded.learning_rates == saved.learning_rates
    for number in range(3, 6):
        step(iter([make_batch(seed=number)]))
        other_step(iter([make_batch(seed=number)]))
        assert weights_digest(loaded) == weights_digest(saved)
    assert loaded.meter.read() == saved.meter.read()


@contextmanager
def full_disk(after: int) -> Iterator[None]:
    """Writing fails from the so-manieth call of the file system on."""
    calls = iter(range(10**6))

    def failing(call: Callable[..., object]) -> Callable[..., object]:
        def called(*arguments: object, **keywords: object) -> object:
            if next(calls) >= after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*arguments, **keywords)

        return called

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "write_tensors", failing(module.write_tensors))
        patch.setattr(Path, "write_text", failing(Path.write_text))
        patch.setattr(os, "fsync", failing(os.fsync))
        yield


@pytest.mark.parametrize("after", [0, 3, 6, 8, 12])
def test_full_disk_leaves_what_was_saved(run: Path, state: TrainingState, after: int) -> None:
    with full_disk(after), pytest.raises(OSError, match="No space left"):
        save_at(state, run, 4)
    assert names(run) == ["1", "2", "3"]
    assert not list(run.glob(".checkpoint*"))
    assert latest_checkpoint(RunFolder(run)) == run / "checkpoint-000003"


@pytest.mark.parametrize(
    "other",
    [
        {"model": {"block_out_channels": [8, 16]}},
        {"model": {"decoder_only": True}},
        {"loss": {"learn_logvar": False}},
        {"loss": {"disc_channels": 4}},
        {"train": {"optimizer": "muon"}},
    ],
)
def test_checkpoint_of_another_model_is_refused(run: Path, other: dict[str, dict[str, object]]) -> None:
    loss = {"learn_logvar": True, "disc_start": 0} | other.get("loss", {})
    config = tiny_config(data={"resolution": 64}, model=other.get("model"), loss=loss, train=other.get("train"))
    state = build_state(config, accelerator=Accelerator(cpu=True))
    with pytest.raises(CheckpointError, match="is of another model than this config's: ") as raised:
        load_checkpoint(state, run / "checkpoint-000002")
    assert "\n" not in str(raised.value)


def test_run_gives_its_averaged_or_raw_weights(run: Path, state: TrainingState) -> None:
    raw = load_run_autoencoder(run, checkpoint="latest", weights="raw")
    ema = load_run_autoencoder(run, checkpoint="checkpoint-000002", weights="ema")
    assert (raw.step, ema.step) == (3, 2)
    assert state.ema is not None
    for ours, average, loaded, averaged in zip(
        state.autoencoder.parameters(),
        state.ema.shadow_params,
        raw.family.model.parameters(),
        ema.family.model.parameters(),
        strict=True,
    ):
        assert torch.equal(ours, loaded)
        assert torch.equal(average, averaged)
