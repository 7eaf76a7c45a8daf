"""A stream's files: shared among processes, read again where they break off, and left out by rule."""

import queue
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import datasets
import fsspec
import pytest

from ldm_vae.config.data import DataConfig
from ldm_vae.images import stream_files
from ldm_vae.images.stream_files import FileRules, StreamError, StreamFiles
from ldm_vae.images.streaming import StreamingImages, open_stream
from tests.images.test_streaming import streaming_images, write_shards

QUICK = {"first_seconds": 0.001}


class Silence:
    """What a file that gives nothing waits in."""

    begun, over = threading.Event(), threading.Event()
    ended: ClassVar[list[bool]] = []

    @classmethod
    def keep(cls) -> None:
        cls.begun.set()
        cls.ended.append(cls.over.wait(timeout=60))


class ImpatientQueue(queue.Queue[Any]):
    """One whose time to wait is over as soon as a file has fallen silent, and never before."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        assert timeout == 1000
        while True:
            try:
                return super().get(timeout=0.01)
            except queue.Empty:
                if Silence.begun.is_set():
                    Silence.begun.clear()
                    raise


class Source:
    """Files of numbers, some of which break off: `faults` has the rows of each attempt at which it does."""

    def __init__(self, sizes: list[int], *, faults: dict[int, list[int]] | None = None) -> None:
        self.opened: Counter[int] = Counter()
        self.faults = faults or {}
        self.dataset = datasets.IterableDataset.from_generator(
            self._rows,
            gen_kwargs={"files": list(enumerate(sizes))},
            features=datasets.Features({"n": datasets.Value("int64")}),
        )

    def _rows(self, files: list[tuple[int, int]]) -> Iterator[dict[str, Any]]:
        for file, size in files:
            attempt = self.opened[file]
            self.opened[file] += 1
            faults = self.faults.get(file, [])
            for row in range(size):
                if attempt < len(faults) and row == abs(faults[attempt]):
                    if faults[attempt] < 0:
                        Silence.keep()
                    raise ConnectionError("the connection was lost")
                yield {"n": 100 * file + row}

    def files(self, *, rank: int = 0, of: int = 1, **rules: Any) -> StreamFiles:
        names = [f"{file}.parquet, 9 bytes" for file in range(self.dataset.num_shards)]
        return StreamFiles(self.dataset, names=names, source="data", rules=FileRules(**QUICK | rules),
                           process_index=rank, num_processes=of)  # fmt: skip


def numbers(files: StreamFiles, number: int = 0) -> list[int]:
    return [row["n"] for row in files.rows(number)]


@pytest.mark.parametrize("faults", [[2], [0, 2], [1, 1], [2, 3, 3], [1, 2, 3, 4]])
def test_a_file_that_breaks_off_is_read_again_from_there(faults: list[int]) -> None:
    """Attempts count from the last progress, so that a long file may break off often."""
    source = Source([3, 5, 1], faults={1: faults})
    assert numbers(source.files()) == [0, 1, 2, 100, 101, 102, 103, 104, 200]
    assert source.opened == {0: 1, 1: len(faults) + 1, 2: 1}


def test_a_dead_file_ends_the_run_or_its_rest_is_left_out() -> None:
    source = Source([3, 5, 1], faults={1: [2, 2, 2]})
    with pytest.raises(
        StreamError,
        match=r"^reading data broke off: 1\.parquet, 9 bytes, 3 times behind row 2: the connection was lost; "
        r"data\.dead_files skip would",
    ):
        numbers(source.files())
    assert source.opened[1] == 3
    source = Source([3, 5, 1], faults={1: [2, 2, 2]})
    files = source.files(dead_files="skip")
    assert numbers(files) == [0, 1, 2, 100, 101, 200]
    assert [(dead.name, dead.number) for dead in files.dead] == [("1.parquet, 9 bytes", 1)]
    assert files.dead[0].reason == "the rest of the file is left out, behind row 2: the connection was lost"
    assert numbers(files, 1) == [0, 1, 2, 100, 101, 102, 103, 104, 200]  # alive again


def test_a_silent_file_counts_as_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nobody waits for it any more."""
    monkeypatch.setattr(
        stream_files, "queue", SimpleNamespace(Queue=ImpatientQueue, Empty=queue.Empty, Full=queue.Full)
    )
    source = Source([2, 3, 1], faults={1: [-1, -1]})
    files = source.files(dead_files="skip", timeout_seconds=1000, attempts=2)
    assert numbers(files) == [0, 1, 100, 200]
    assert files.dead[0].reason.endswith("behind row 1: it gave nothing for 1000 s")
    assert source.opened == {0: 1, 1: 2, 2: 1}
    assert Silence.ended == []
    Silence.over.set()


@pytest.mark.parametrize(("num_files", "of"), [(1, 3), (2, 3), (3, 3), (6, 3), (4, 3), (7, 3), (5, 2), (4, 1)])
def test_rows_come_equally_often(num_files: int, of: int) -> None:
    """And no process opens files for others, where there are enough of them."""
    every = [100 * file + row for file in range(num_files) for row in range(2 + file % 3)]
    seen: list[Counter[int]] = []
    for rank in range(of):
        source = Source([2 + file % 3 for file in range(num_files)])
        files = source.files(rank=rank, of=of)
        passes = [numbers(files, number) for number in range(files.num_kinds)]
        seen.append(Counter(n for each in passes for n in each))
        assert numbers(files, files.num_kinds) == passes[0]
        if num_files >= of:
            assert max(source.opened.values()) <= 2
            assert all(len({n // 100 for n in numbers}) <= -(-num_files // of) for numbers in passes)
    together = sum(seen, Counter())
    times = of if num_files > of and num_files % of else 1
    assert together == Counter({n: times for n in every})


def test_dead_files_at_an_address_are_listed_as_skipped(tmp_path: Path) -> None:
    write_shards(tmp_path, [10, 20], [30, 40], [50])
    memory = fsspec.filesystem("memory")
    memory.put(f"{tmp_path}/", "/dead-files/data/", recursive=True)
    stream = open_stream("memory://dead-files/data")
    augmentation = streaming_images(tmp_path)._augmentation
    memory.rm("/dead-files/data/1.parquet")
    skipping = StreamingImages(stream, augmentation, rules=FileRules(dead_files="skip", **QUICK))
    samples = list(islice(skipping.samples(start=0), 4))
    assert [round((sample.image.flatten()[0].item() + 1) * 127.5) for sample in samples] == [10, 20, 50, 10]
    (skipped,) = [skipped for sample in samples for skipped in sample.skipped]
    assert (skipped.index, skipped.name.partition(",")[0]) == (1, "1.parquet")
    assert "the rest of the file is left out, behind row 0" in skipped.reason
    with pytest.raises(StreamError, match=r"reading memory://dead-files/data broke off: 1\.parquet, .* 3 times"):
        list(islice(StreamingImages(stream, augmentation, rules=FileRules(**QUICK)).samples(start=0), 3))
    memory.rm("/dead-files/data", recursive=True)
    with pytest.raises(StreamError, match=r"holds no image that can be read; 0\.parquet, .*: the rest of the file"):
        next(skipping.samples(start=0))


def test_the_rule_is_for_streams() -> None:
    with pytest.raises(ValueError, match=r"data\.dead_files is for data\.streaming; without it single images"):
        DataConfig(dead_files="skip")
    with pytest.raises(ValueError, match=r"data\.file_timeout is 0"):
        DataConfig(file_timeout=0)
