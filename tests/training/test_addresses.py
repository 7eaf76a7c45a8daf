"""A run on a stream at an address: the weights of the same run on files here, where calls fail and the run goes on."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest

from ldm_vae.images import addresses
from ldm_vae.training.loop import train
from tests.images.test_addresses import write_tables, write_tars
from tests.pictures import save_pictures
from tests.stores import FaultyStore
from tests.tiny import tiny_config
from tests.training.runs import assert_bit_equal

BLOCK = 1 << 14


class WatchedStore(FaultyStore):
    """A store of which three calls in ten fail, and that tells how much is asked for at once."""

    opened: ClassVar[list[WatchedStore]] = []
    lengths: ClassVar[list[int]] = []

    def __init__(self, address: str) -> None:
        super().__init__(address, rate=0.3, seed=len(self.opened))
        self.opened.append(self)

    def read(self, name: str) -> bytes:
        raise AssertionError("an archive is never read as a whole")

    def read_range(self, name: str, start: int, length: int) -> bytes:
        self.lengths.append(length)
        return super().read_range(name, start, length)


@pytest.mark.parametrize("kind", ["tars", "tables"])
def test_a_stream_at_an_address_trains_as_one_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    contents = [path.read_bytes() for path in pictures(tmp_path / "pictures")]
    (write_tars if kind == "tars" else write_tables)(tmp_path / "data", contents)
    there = f"memory://{uuid.uuid4().hex}"
    fsspec.filesystem("memory").put(f"{tmp_path / 'data'}/", there.removeprefix("memory:/") + "/data", recursive=True)
    monkeypatch.setattr(addresses, "RemoteStore", WatchedStore)
    monkeypatch.setattr(addresses, "_BUFFER_BYTES", BLOCK)

    def run(name: str, data: str, **fields: Any) -> None:
        train_fields = {"max_train_steps": 4, "checkpointing_steps": 2, **fields}
        data_fields = {"train": data, "streaming": True, "shuffle_buffer": 3}
        train(tiny_config(output_dir=tmp_path / name, data=data_fields, train=train_fields))

    run("here", str(tmp_path / "data"))
    run("there", f"{there}/data", max_train_steps=2)
    run("there", f"{there}/data", resume_from_checkpoint="latest")
    assert_bit_equal(tmp_path / "there", tmp_path / "here")
    if kind == "tars":
        assert sum(store.faults for store in WatchedStore.opened) > 2
        assert 0 < max(WatchedStore.lengths) <= BLOCK < sum(map(len, contents))


def pictures(folder: Path) -> list[Path]:
    return sorted(Path(save_pictures(folder, count=7, size=(40, 36))).iterdir())
