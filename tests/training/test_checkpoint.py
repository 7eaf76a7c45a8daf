"""Checkpoints: whole or absent, recognised when damaged, never the last one removed."""

from __future__ import annotations

import copy
import dataclasses
import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from ldm_vae.config.parsing import dump_config
from ldm_vae.config.run import Config
from ldm_vae.training import checkpoint as module
from ldm_vae.training.checkpoint import (
    CheckpointError,
    check_whole,
    find_checkpoint,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_run_autoencoder,
    remove_old_checkpoints,
    save_checkpoint,
)
from ldm_vae.training.processes import weights_digest
from ldm_vae.training.resume import begin_run, choose_checkpoint
from ldm_vae.training.state import BestValidation, TrainingState, build_state
from ldm_vae.training.step import TrainingStep
from tests.tiny import tiny_config
from tests.training.launching import damage
from tests.training.test_step import make_batch

CONFIG = tiny_config(
    data={"resolution": 64}, loss={"learn_logvar": True, "disc_start": 0}, train={"lr_scheduler": "cosine"}
)


def trained(config: Config = CONFIG, *, steps: int = 2, seed: int = 0) -> tuple[TrainingState, TrainingStep]:
    torch.manual_seed(seed)
    accelerator = Accelerator(cpu=True)
    state = build_state(config, accelerator=accelerator)
    step = TrainingStep(state, loss=config.loss, train=config.train, accelerator=accelerator)
    for number in range(steps):
        step(iter([make_batch(seed=number)]))
    return state, step


@pytest.fixture(scope="module")
def state() -> TrainingState:
    return trained()[0]


@pytest.fixture
def run(tmp_path: Path, state: TrainingState) -> Path:
    """A run with checkpoints of steps 1, 2 and 3."""
    (tmp_path / "config.yaml").write_text(dump_config(CONFIG))
    for number in (1, 2, 3):
        save_at(state, tmp_path, number)
    return tmp_path


def save_at(state: TrainingState, run: Path, step: int) -> None:
    save_checkpoint(dataclasses.replace(state, step=step), run)


def names(run: Path) -> list[str]:
    return [path.name.removeprefix("checkpoint-00000") for path in list_checkpoints(run)]


def test_loaded_state_is_the_saved_one_and_goes_on_like_it(tmp_path: Path) -> None:
    """Everything, memory formats included: the next steps are bit-equal."""
    saved, step = trained(steps=3)
    saved.best = BestValidation(step=2, metric="psnr", value=12.5)
    loaded, other_step = trained(steps=0, seed=1)
    assert weights_digest(loaded) != weights_digest(saved)
    load_checkpoint(loaded, save_checkpoint(saved, tmp_path))
    assert (loaded.step, loaded.best, loaded.lam.item()) == (3, saved.best, saved.lam.item())
    assert loaded.learning_rates == saved.learning_rates
    for number in range(3, 6):
        step(iter([make_batch(seed=number)]))
        other_step(iter([make_batch(seed=number)]))
        assert weights_digest(loaded) == weights_digest(saved)
    assert loaded.meter.read() == saved.meter.read()


def test_latest_is_the_newest_whole_one(run: Path) -> None:
    assert latest_checkpoint(run) == run / "checkpoint-000003"
    said: list[str] = []
    damage(run / "checkpoint-000003" / "discriminator.safetensors", how="flip")
    damage(run / "checkpoint-000002" / "state.json", how="cut")
    assert latest_checkpoint(run, report=said.append) == run / "checkpoint-000001"
    assert said == [
        f"{run / 'checkpoint-000003'} is damaged: discriminator.safetensors is not what was written",
        f"{run / 'checkpoint-000002'} is damaged: state.json is not what was written",
    ]
    (run / "checkpoint-000001" / "optimizer.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"none of its 3 checkpoints is whole"):
        latest_checkpoint(run)


@pytest.mark.parametrize("how", ["flip", "cut"])
def test_every_file_is_watched(run: Path, how: str) -> None:
    folder = run / "checkpoint-000001"
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        damage(path, how=how)
        with pytest.raises(CheckpointError, match=path.name if path.name != "manifest.json" else "is damaged"):
            check_whole(folder)
        path.write_bytes(content)
    check_whole(folder)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("checkpoint-000009", "holds no checkpoint 'checkpoint-000009'; it holds checkpoint-000001, "),
        ("samples", "holds no checkpoint 'samples'"),
        ("best", "was not validated"),
    ],
)
def test_missing_checkpoint_is_named(run: Path, name: str, said: str) -> None:
    (run / "samples").mkdir()
    with pytest.raises(CheckpointError, match=said):
        find_checkpoint(run, name)


def test_limit_keeps_the_newest_and_the_best(run: Path, state: TrainingState) -> None:
    best = BestValidation(step=1, metric="psnr", value=20.0)
    save_at(state, run, 4)
    remove_old_checkpoints(run, step=4, limit=2, best=best)
    assert names(run) == ["1", "3", "4"]
    remove_old_checkpoints(run, step=4, limit=1, best=best)
    assert names(run) == ["1", "4"]
    remove_old_checkpoints(run, step=4, limit=None, best=None)
    assert names(run) == ["1", "4"]


def test_limit_never_takes_the_only_whole_one(run: Path, state: TrainingState) -> None:
    """A damaged one of a later step, from an earlier life of the run, doesn't push out the one just written."""
    save_at(state, run, 9)
    damage(run / "checkpoint-000009" / "ema.safetensors", how="flip")
    save_at(state, run, 4)
    remove_old_checkpoints(run, step=4, limit=1, best=None)
    assert latest_checkpoint(run) == run / "checkpoint-000004"


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
    assert latest_checkpoint(run) == run / "checkpoint-000003"


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


# Choosing where to start


def resuming(run: Path, name: str | None, *, overwrite: bool = False) -> Config:
    config = copy.deepcopy(CONFIG)
    config.output_dir, config.overwrite = str(run), overwrite
    config.train.resume_from_checkpoint = name
    return config


def test_run_into_a_folder_that_holds_one_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds a run; go on with --train\.resume_from_checkpoint latest"):
        choose_checkpoint(run, resuming(run, None))
    assert choose_checkpoint(run, resuming(run, None, overwrite=True)) is None
    assert choose_checkpoint(tmp_path / "new", resuming(run, None)) is None
    assert choose_checkpoint(tmp_path / "new", resuming(run, "latest")) is None
    assert names(run) == ["1", "2", "3"]  # choosing changes nothing


def test_overwriting_removes_what_a_run_writes_and_nothing_else(run: Path) -> None:
    (run / "notes.txt").write_text("mine")
    (run / "checkpoint-notes.txt").write_text("mine")
    for name in ("metrics.jsonl", "skipped.jsonl"):
        (run / name).write_text("{}\n")
    (run / "samples").mkdir()
    config = resuming(run, None, overwrite=True)
    begin_run(run, config, checkpoint=None)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint-notes.txt", "config.yaml", "notes.txt"]
    assert (run / "config.yaml").read_text() == dump_config(config)


def test_resuming_drops_what_came_after_and_torn_lines(run: Path) -> None:
    lines = [{"step": 1, "rec": 0.1}, {"step": 2, "rec": 1 / 3}, {"step": 3, "rec": 0.3}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "re')
    (run / "skipped.jsonl").write_text('{"index": 1, "name": "a", "reason": "r"}\n{"ind')
    (run / ".checkpoint-000007.unfinished").mkdir()
    damage(run / "checkpoint-000003" / "ema.safetensors", how="flip")
    config = resuming(run, "latest")
    chosen = choose_checkpoint(run, config)
    assert chosen == run / "checkpoint-000002"
    begin_run(run, config, checkpoint=chosen)
    assert [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] == lines[:2]
    assert (run / "skipped.jsonl").read_text().count("\n") == 1
    assert names(run) == ["1", "2"]
    assert sorted(path.name for path in run.iterdir() if "checkpoint" in path.name) == [
        "checkpoint-000001", "checkpoint-000002", "checkpoint-000003.damaged",
    ]  # fmt: skip


def test_changed_settings_are_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = resuming(run, "latest")
    config.train.learning_rate = 5e-4
    begin_run(run, config, checkpoint=run / "checkpoint-000003")
    assert capsys.readouterr().out.splitlines() == ["train.learning_rate is 0.0005 now, after 0.001"]
