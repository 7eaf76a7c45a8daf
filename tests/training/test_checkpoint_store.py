"""Checkpoints beside the run's folder: whole or not there, and what goes on from them ends like what never stopped."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Any

import pytest

from ldm_vae.config.run import Config
from ldm_vae.system.places import open_store
from ldm_vae.system.remote_store import RemoteStore, Retries
from ldm_vae.system.store import Store
from ldm_vae.training import checkpoint_store
from ldm_vae.training.checkpoint_files import check_whole
from ldm_vae.training.checkpoint_store import CheckpointStore
from ldm_vae.training.loop import train
from ldm_vae.training.run_folder import RunFolder
from ldm_vae.training.state import TrainingState
from tests.stores import StoppingStore, stopped_at_each_call
from tests.tiny import tiny_config
from tests.training.checkpoints import CONFIG, save_at, trained
from tests.training.runs import assert_bit_equal


@pytest.fixture(scope="module")
def state() -> TrainingState:
    return trained()[0]


@pytest.fixture
def address() -> str:
    return f"memory://{uuid.uuid4().hex}/run"


def fetch(address: str, folder: Path) -> tuple[str | None, list[str]]:
    """Fetch into a folder; return the checkpoint's name and what is told."""
    said: list[str] = []
    fetched = CheckpointStore(address, RunFolder(folder)).fetch_newest(report=said.append)
    return None if fetched is None else fetched.name, said


def test_the_newest_whole_one_is_fetched(state: TrainingState, address: str, tmp_path: Path) -> None:
    store = CheckpointStore(address, RunFolder(tmp_path / "run"))
    for step in (1, 2, 12):
        store.upload(save_at(state, tmp_path / "run", step))
    assert store.names() == ["checkpoint-000001", "checkpoint-000002", "checkpoint-000012"]
    assert fetch(address, tmp_path / "new") == ("checkpoint-000012", [f"checkpoint-000012 was fetched from {address}"])
    for path in (tmp_path / "run" / "checkpoint-000012").iterdir():
        assert (tmp_path / "new" / "checkpoint-000012" / path.name).read_bytes() == path.read_bytes()
    assert fetch(address, tmp_path / "new") == (None, [])
    files = open_store(address)
    content = bytearray(files.read("checkpoint-000012/autoencoder.safetensors"))
    content[-1] ^= 1
    files.write_whole("checkpoint-000012/autoencoder.safetensors", bytes(content))
    files.remove("checkpoint-000002/manifest.json")
    name, said = fetch(address, tmp_path / "other")
    assert name == "checkpoint-000001"
    assert "autoencoder.safetensors is not what was written; the one before is taken" in said[0]
    assert "checkpoint-000002 is not whole; the one before is taken" in said[1]
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["checkpoint-000001"]
    store.remove_after(1)
    store.remove("checkpoint-000007")
    assert store.names() == ["checkpoint-000001"]


@pytest.mark.parametrize("after", [False, True])
def test_a_process_may_end_at_any_call_of_an_upload(
    state: TrainingState, address: str, tmp_path: Path, after: bool
) -> None:
    """What is fetched then is whole: the new checkpoint, or the one before."""
    run = RunFolder(tmp_path / "run")
    first, second = (save_at(state, run.path, step) for step in (1, 2))
    fetched = []

    def fresh(number: int) -> Store:
        store = CheckpointStore(f"{address}-{number}", run)
        store.upload(first)
        return store.store

    def upload(stopping: StoppingStore) -> None:
        store = CheckpointStore(stopping.place(), run)
        store.store = stopping
        store.upload(second)

    for stopped in stopped_at_each_call(upload, fresh=fresh, after=after):
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
        name, _ = fetch(stopped.place(), tmp_path / "new")
        check_whole(tmp_path / "new" / str(name))
        fetched.append(name)
    assert len(fetched) > 10
    assert "checkpoint-000001" in fetched
    assert CONFIG.train.checkpoint_store is None


def config_of(folder: Path, pictures: Path, **train_fields: Any) -> Config:
    fields = {"max_train_steps": 4, "checkpointing_steps": 2, "checkpoints_total_limit": 1, **train_fields}
    return tiny_config(output_dir=str(folder), data={"train": str(pictures)}, train=fields)


def test_a_run_goes_on_on_another_machine(
    pictures: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    train(config_of(tmp_path / "whole", pictures))
    half = config_of(tmp_path / "half", pictures, max_train_steps=2, checkpoint_store=address)
    train(half)
    shutil.rmtree(tmp_path / "half")
    assert open_store(address).exists("metrics.jsonl")
    with pytest.raises(ValueError, match=rf"train\.checkpoint_store: {address} holds checkpoints; go on with"):
        train(half)
    again = config_of(tmp_path / "half", pictures, checkpoint_store=address, resume_from_checkpoint="latest")

    class Refusing(RemoteStore):
        retries = Retries(attempts=1)

        def write_whole(self, name: str, content: bytes) -> None:
            raise AssertionError

        def _put(self, name: str, path: Path) -> None:
            self._call("written", name, lambda fs: (_ for _ in ()).throw(PermissionError("read only")))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_store, "open_store", Refusing)
        train(again)
    assert "was not uploaded" in capsys.readouterr().out
    assert_bit_equal(tmp_path / "whole", tmp_path / "half")
    assert CheckpointStore(address, RunFolder(tmp_path)).names() == ["checkpoint-000002"]
    shutil.rmtree(tmp_path / "half")
    train(again)
    assert_bit_equal(tmp_path / "whole", tmp_path / "half")
    assert CheckpointStore(address, RunFolder(tmp_path)).names() == ["checkpoint-000004"]
