"""Which checkpoints are whole, what their names say, and which of them stay."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm_vae.training.checkpoint import load_checkpoint
from ldm_vae.training.checkpoint_files import (
    CheckpointError,
    check_whole,
    find_checkpoint,
    latest_checkpoint,
    read_record,
    remove_old_checkpoints,
    write_manifest,
)
from ldm_vae.training.run_autoencoder import load_run_autoencoder
from ldm_vae.training.run_folder import RunFolder
from ldm_vae.training.state import BestValidation, TrainingState
from tests.training.checkpoints import CONFIG, names, save_at, trained
from tests.training.runs import damage


def test_latest_is_the_newest_whole_one(run: Path) -> None:
    assert latest_checkpoint(RunFolder(run)) == run / "checkpoint-000003"
    said: list[str] = []
    damage(run / "checkpoint-000003" / "discriminator.safetensors", how="flip")
    damage(run / "checkpoint-000002" / "state.json", how="cut")
    assert latest_checkpoint(RunFolder(run), report=said.append) == run / "checkpoint-000001"
    assert said == [
        f"{run / 'checkpoint-000003'} is damaged: discriminator.safetensors is not what was written",
        f"{run / 'checkpoint-000002'} is damaged: state.json is not what was written",
    ]
    (run / "checkpoint-000001" / "optimizer.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"none of its 3 checkpoints is whole"):
        latest_checkpoint(RunFolder(run))


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
        find_checkpoint(RunFolder(run), name)


def test_limit_keeps_the_newest_and_the_best(run: Path, state: TrainingState) -> None:
    best = BestValidation(step=1, metric="psnr", value=20.0)
    save_at(state, run, 4)
    remove_old_checkpoints(RunFolder(run), step=4, limit=2, best=best)
    assert names(run) == ["1", "3", "4"]
    remove_old_checkpoints(RunFolder(run), step=4, limit=1, best=best)
    assert names(run) == ["1", "4"]
    remove_old_checkpoints(RunFolder(run), step=4, limit=None, best=None)
    assert names(run) == ["1", "4"]


def test_limit_never_takes_the_only_whole_one(run: Path, state: TrainingState) -> None:
    """A damaged one of a later step, from an earlier life of the run, doesn't push out the one just written."""
    save_at(state, run, 9)
    damage(run / "checkpoint-000009" / "ema.safetensors", how="flip")
    save_at(state, run, 4)
    remove_old_checkpoints(RunFolder(run), step=4, limit=1, best=None)
    assert latest_checkpoint(RunFolder(run)) == run / "checkpoint-000004"


# What only looks whole


def rewritten(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Change a checkpoint's manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    changed = change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest if changed is None else changed))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda manifest: manifest.clear(), "is no list of files, sizes and digests"),
        (lambda manifest: [], "is no list of files"),
        (lambda manifest: [manifest], "is no list of files"),
        (lambda manifest: "whole", "is no list of files"),
        (lambda manifest: manifest | {"state.json": None}, "is no list of files"),
        (lambda manifest: manifest | {"state.json": {"size": 3}}, "is no list of files"),
        (lambda manifest: manifest.pop("config.yaml") and None, "says nothing of config.yaml"),
        (lambda manifest: manifest.pop("discriminator.safetensors") and None, "nothing of discriminator.safetensors"),
        (lambda manifest: manifest | {"../config.yaml": manifest["config.yaml"]}, "'../config.yaml' leads out"),
        (lambda manifest: manifest | {"/etc/hostname": manifest["config.yaml"]}, "'/etc/hostname' is an"),
        (lambda manifest: manifest | {"..": manifest["config.yaml"]}, "'..' leads out of its folder"),
        (lambda manifest: manifest | {"gone.safetensors": manifest["config.yaml"]}, "gone.safetensors is missing"),
    ],
)  # fmt: skip
def test_empty_or_odd_manifest_is_damage(run: Path, change: Callable[[dict[str, object]], object], said: str) -> None:
    folder = run / "checkpoint-000003"
    rewritten(folder, change)
    with pytest.raises(CheckpointError, match=said):
        check_whole(folder)
    assert latest_checkpoint(RunFolder(run)) == run / "checkpoint-000002"


def test_link_out_of_the_folder_is_damage(run: Path, tmp_path: Path) -> None:
    folder = run / "checkpoint-000003"
    outside = tmp_path / "outside.safetensors"
    (folder / "ema.safetensors").rename(outside)
    (folder / "ema.safetensors").symlink_to(outside)
    with pytest.raises(CheckpointError, match=r"ema\.safetensors' leads out of its folder through a link"):
        check_whole(folder)


def test_copied_folder_is_of_the_step_that_it_holds(run: Path) -> None:
    """Resumed by its name, it would go on from another step, and double the figures between them."""
    shutil.copytree(run / "checkpoint-000002", run / "checkpoint-000009")
    with pytest.raises(CheckpointError, match=r"saved after 2 updates; it may be a renamed copy of checkpoint-000002"):
        find_checkpoint(RunFolder(run), "checkpoint-000009")
    said: list[str] = []
    assert latest_checkpoint(RunFolder(run), report=said.append) == run / "checkpoint-000003"
    assert len(said) == 1


@pytest.mark.parametrize(
    "record", ["[]", "{}", "null", '{"step": 3}', '{"step": "3", "best": null, "early_stages": [], "data": {}}']
)
def test_odd_record_is_damage_though_its_digest_is_right(run: Path, record: str) -> None:
    folder = run / "checkpoint-000003"
    (folder / "state.json").write_text(record)
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    with pytest.raises(CheckpointError, match=r"damaged: state\.json"):
        check_whole(folder)


def test_other_files_in_the_folder_are_no_damage(run: Path) -> None:
    (run / "checkpoint-000003" / "notes.txt").write_text("mine")
    check_whole(run / "checkpoint-000003")


@pytest.mark.parametrize("file", ["autoencoder.safetensors", "config.yaml"])
def test_damaged_file_is_never_exported(run: Path, file: str) -> None:
    damage(run / "checkpoint-000003" / file, how="flip")
    assert load_run_autoencoder(run, checkpoint="latest", weights="raw").step == 2
    with pytest.raises(CheckpointError, match=file):
        load_run_autoencoder(run, checkpoint="checkpoint-000003", weights="raw")


def test_exported_config_is_the_checkpoints(run: Path) -> None:
    """Settings that were changed later, or a damaged config.yaml in the run's folder, are not those of the weights."""
    (run / "config.yaml").write_text("model: nonsense")
    assert load_run_autoencoder(run, checkpoint="latest", weights="ema").config == CONFIG


def test_tensors_that_are_none_are_a_line(run: Path) -> None:
    folder = run / "checkpoint-000003"
    for content in (b"", b"\xff" * 100, (2**60).to_bytes(8, "little") + b"{}"):
        (folder / "ema.safetensors").write_bytes(content)
        (folder / "manifest.json").unlink()
        write_manifest(folder)
        with pytest.raises(CheckpointError, match=r"damaged: ema\.safetensors can't be read") as raised:
            load_run_autoencoder(run, checkpoint="latest", weights="ema")
        assert "\n" not in str(raised.value)
    save_file({"of": torch.zeros(1)}, folder / "ema.safetensors")
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    with pytest.raises(CheckpointError, match=r"weights and architecture don't fit"):
        load_run_autoencoder(run, checkpoint="latest", weights="ema")


def test_record_is_read_as_it_was_written(run: Path) -> None:
    record = read_record(run / "checkpoint-000002")
    assert (record.step, record.best, record.data.number) == (2, None, 2)
    assert record.early_stages == CONFIG.early_stages


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("state.safetensors", {"lam": None}, "state.safetensors holds no number lam"),
        ("state.safetensors", {"likelihood_logvar": torch.zeros(2)}, "holds no number likelihood_logvar"),
        ("autoencoder.safetensors", {"decoder.conv_out.bias": None}, r"Missing key\(s\).*decoder\.conv_out\.bias"),
        ("optimizer.safetensors", {"autoencoder.decoder.conv_out.bias:exp_avg": torch.zeros(7)}, r"the shape \[7\]"),
    ],
)
def test_a_whole_file_of_something_else_is_one_line(
    run: Path, file: str, change: dict[str, torch.Tensor | None], told: str
) -> None:
    """Digests say that a file is as it was written, not that it is this model's."""
    checkpoint = run / "checkpoint-000003"
    tensors = {name: tensor for name, tensor in (load_file(checkpoint / file) | change).items() if tensor is not None}
    save_file(tensors, checkpoint / file)
    seal_again(checkpoint)
    with pytest.raises(CheckpointError, match=told) as raised:
        load_checkpoint(trained()[0], checkpoint)
    assert "\n" not in str(raised.value)


def test_an_architecture_of_absurd_size_is_never_built(run: Path) -> None:
    checkpoint = run / "checkpoint-000003"
    fields = json.loads((checkpoint / "autoencoder_config.json").read_text())
    (checkpoint / "autoencoder_config.json").write_text(json.dumps({**fields, "block_out_channels": [10**9, 10**9]}))
    seal_again(checkpoint)
    with pytest.raises(CheckpointError, match=r"is damaged: .*block_out_channels is \[1000000000"):
        load_run_autoencoder(run, checkpoint="checkpoint-000003", weights="ema")


def seal_again(checkpoint: Path) -> None:
    """Write the manifest anew, as if what is there had been saved."""
    (checkpoint / "manifest.json").unlink()
    write_manifest(checkpoint)
