"""Streamed sources on their way to the encoder: no random access, so processes share them by input file."""

from __future__ import annotations

import functools
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from ldm_vae.encoding.output import check_plan, withdraw_index
from ldm_vae.encoding.preprocessing import WORKER_TIMEOUT_SECONDS, ImageBatch, Preprocessing
from ldm_vae.encoding.stream_files import StreamedFiles, only_batch, part_stem
from ldm_vae.encoding.work import PendingShards
from ldm_vae.images.streaming import ImageStream
from ldm_vae.images.transforms import Size
from ldm_vae.latents.sealed import read_sealed, seal
from ldm_vae.latents.shards import Plan, ShardRecord
from ldm_vae.latents.summaries import ShardSummary
from ldm_vae.system.leases import Leases
from ldm_vae.system.store import Store
from ldm_vae.system.workers import load

_PART_RECORD = re.compile(r"latents-(\d+)-(\d+)\.json")
_SHORT_SECONDS, _MOST_CLAIMS = 20.0, 32


def _end_name(file: int) -> str:
    return f"latents-{file:05d}.end.json"


class StreamShardWork(PendingShards):
    """The shards of a stream: its input files that are not encoded yet, of which this process claims some.

    The rows of input file f, in its order, are the shards latents-f-00000, latents-f-00001 …; a small file beside them
    says, when the input file was read to its end, how many rows it had. Changed sources are not found.

    The arguments are those of `ShardWork`; the images come from `stream`.
    """

    def __init__(
        self,
        store: Store,
        *,
        plan: Plan,
        leases: Leases,
        stream: ImageStream,
        preprocessing: Preprocessing,
        size: Size,
        on_whole: Callable[[ShardRecord | ShardSummary], None],
    ) -> None:
        super().__init__(store, plan=plan, leases=leases, on_whole=on_whole)
        self._files = StreamedFiles(stream, preprocessing=preprocessing, size=size, shard_size=plan.shard_size)
        self._num_files = stream.dataset.num_shards
        self._lock = threading.Lock()
        self._claims_a_worker = 1
        self._num_images: dict[int, int] = {}
        """Of input files that this process read to their ends, but whose shards aren't all whole yet."""
        self._left: set[int] = set()
        self.find_vanished()
        for stem in self.stems:
            self._note(stem)
        if self._left:
            withdraw_index(store)

    @property
    def num_left(self) -> int:
        """Input files that are not encoded."""
        return len(self._left)

    @property
    def stems(self) -> list[str]:
        """Names of the shards of all input files that are encoded, in order, without suffix."""
        return [
            part_stem(file, part)
            for file in range(self._num_files)
            for part in range(self._num_parts(self._images_of(file) or 0))
        ]

    def batches(self, *, batch_size: int, num_workers: int, pin_memory: bool) -> Iterator[ImageBatch]:
        """Claim some input files for each worker and yield their images."""
        started = time.monotonic()
        files: list[tuple[int, set[int]]] = []
        there = self._parts_there()
        for file in sorted(self._left):
            check_plan(self._store, plan=self._plan)
            if len(files) < max(1, num_workers) * self._claims_a_worker and self._claim(file):
                files.append((file, self._whole_parts(file, there.get(file, ()))))
        if not files:
            return
        streamed = self._files.of(files, batch_size=batch_size)
        for batch in load(
            streamed,
            collate=only_batch,
            batch_size=1,
            num_workers=min(num_workers, len(files)),
            timeout_seconds=WORKER_TIMEOUT_SECONDS,
            pin_memory=pin_memory,
        ):
            streamed.note(batch)
            if batch.num_images is not None:
                with self._lock:
                    self._num_images[batch.file] = batch.num_images
            if batch.rows or batch.last:
                yield batch
            self._finish(batch.file)
        if time.monotonic() - started < _SHORT_SECONDS:  # small files: starting the workers anew costs more
            self._claims_a_worker = min(2 * self._claims_a_worker, _MOST_CLAIMS)

    def written(self, record: ShardRecord) -> None:
        """Note a shard that this process wrote."""
        self._finish(int(record.stem.split("-")[1]))

    def find_vanished(self) -> None:
        """Find input files whose shards vanished since they were whole."""
        self._left = {file for file in range(self._num_files) if not self._is_done(file)}
        for file in self._left:
            self._store.remove(_end_name(file))

    def _claim(self, file: int) -> bool:
        if self._claim_unless(functools.partial(self._is_done, file), name=_end_name(file)):
            return True
        if self._is_done(file):
            self._left.discard(file)
            for part in range(self._num_parts(self._images_of(file) or 0)):
                self._note(part_stem(file, part))
        return False

    def _finish(self, file: int) -> None:
        """Write the end of an input file once it is read and all its shards are whole."""
        with self._lock:
            num_images = self._num_images.get(file)
            if num_images is None or not self._are_whole(file, num_images):
                return
            del self._num_images[file]
        end = {"plan": self._plan.digest, "file": file, "num_images": num_images}
        self._store.write_whole(_end_name(file), seal(end))
        self._left.discard(file)
        self._leases.finish(_end_name(file))

    def _images_of(self, file: int) -> int | None:
        """Images of an input file that was read to its end."""
        try:
            end = read_sealed(self._store, _end_name(file))
        except FileNotFoundError:
            return None
        return end["num_images"] if end is not None and end["plan"] == self._plan.digest else None

    def _is_done(self, file: int) -> bool:
        num_images = self._images_of(file)
        return num_images is not None and self._are_whole(file, num_images)

    def _are_whole(self, file: int, num_images: int) -> bool:
        """Whether all shards of an input file of so many images are whole."""
        return all(self._record(part_stem(file, part)) is not None for part in range(self._num_parts(num_images)))

    def _parts_there(self) -> dict[int, list[int]]:
        """Return the parts of each input file that have a record, whole or not."""
        parts: dict[int, list[int]] = {}
        for name in self._store.names():
            if match := _PART_RECORD.fullmatch(name):
                parts.setdefault(int(match[1]), []).append(int(match[2]))
        return parts

    def _whole_parts(self, file: int, there: Iterable[int]) -> set[int]:
        return {part for part in there if self._record(part_stem(file, part)) is not None}

    def _num_parts(self, num_images: int) -> int:
        return -(-num_images // self._plan.shard_size)

    def _note(self, stem: str) -> None:
        record = self._record(stem)
        if record is not None:
            self._on_whole(record)
