"""Input files of a stream, read to batches in data workers."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from ldm_vae.encoding.preprocessing import EncodingImage, ImageBatch, Preprocessing, collate
from ldm_vae.images.cells import Stored
from ldm_vae.images.guard import UnreadableImage
from ldm_vae.images.stream_files import FileRules, StreamFiles
from ldm_vae.images.streaming import ImageStream
from ldm_vae.images.transforms import Size
from ldm_vae.latents.shards import Row

_RULES = FileRules(advice="what is encoded stays, and the same encode does the rest")
FILE_STRIDE = 1 << 32
"""Sample i of a stream is row i % FILE_STRIDE of input file i // FILE_STRIDE; each of several crops is a row."""


def part_stem(file: int, part: int) -> str:
    """Name of the shard with the part-th `shard_size` rows of an input file."""
    return f"latents-{file:05d}-{part:05d}"


def only_batch(batches: list[FileBatch]) -> FileBatch:
    """Collate what the workers batch themselves (a function by name, for workers that are spawned)."""
    return batches[0]


@dataclass(kw_only=True)
class FileBatch(ImageBatch):
    """Images of an input file; the last batch of a file says how many images it has."""

    file: int
    num_images: int | None = None


class StreamedFiles(IterableDataset):
    """Batches of input files, each worker reading its own."""

    def __init__(self, stream: ImageStream, *, preprocessing: Preprocessing, size: Size, shard_size: int) -> None:
        self._stream, self._preprocessing, self._size, self._shard_size = stream, preprocessing, size, shard_size
        self._files: list[tuple[int, set[int]]] = []
        self._batch_size = 1
        self._delivered: Counter[int] = Counter()
        """How many batches of each file are delivered."""
        self._ended: set[int] = set()
        """Files whose last batch is delivered."""

    def of(self, files: list[tuple[int, set[int]]], *, batch_size: int) -> StreamedFiles:
        """Read these input files, each with the parts of it that are whole already."""
        self._files, self._batch_size = files, batch_size
        self._delivered.clear()
        self._ended.clear()
        return self

    def note(self, batch: FileBatch) -> None:
        """Note a batch that a worker has delivered."""
        self._delivered[batch.file] += 1
        if batch.num_images is not None:
            self._ended.add(batch.file)

    def resumed(self, num_samples: int) -> StreamedFiles:
        """Return the batches that are not delivered yet, for workers that are started anew."""
        assert num_samples == self._delivered.total()
        rest = copy.copy(self)
        rest._files = [(file, whole_parts) for file, whole_parts in self._files if file not in self._ended]
        rest._delivered = self._delivered.copy()
        return rest

    def __iter__(self) -> Iterator[FileBatch]:
        worker = get_worker_info()
        files = self._files if worker is None else self._files[worker.id :: worker.num_workers]
        for file, whole_parts in files:
            yield from self._batches(file, whole_parts)

    def _batches(self, file: int, whole_parts: set[int]) -> Iterator[FileBatch]:
        images: list[tuple[dict[str, Any], int]] = []
        number, left = 0, self._delivered[file]

        def read() -> list[EncodingImage]:
            return [self._read(example, sample=sample) for example, sample in images]

        for example in self._crops(file):
            part, at = divmod(number, self._shard_size)
            number += 1
            if part in whole_parts:
                continue
            images.append((example, file * FILE_STRIDE + number - 1))
            last = at + 1 == self._shard_size
            if last or (at + 1) % self._batch_size == 0:
                if left > 0:
                    left -= 1
                else:
                    yield self._batch(read(), file=file, part=part, last=last)
                images = []
        part, rest = divmod(number, self._shard_size)
        last = rest > 0 and part not in whole_parts
        yield self._batch(read(), file=file, part=part, last=last, num_images=number)

    def _batch(
        self, images: list[EncodingImage], *, file: int, part: int, last: bool, num_images: int | None = None
    ) -> FileBatch:
        batch = collate(images)
        return FileBatch(
            rows=batch.rows,
            pixels=batch.pixels,
            noise=batch.noise,
            jpegs=batch.jpegs,
            stem=part_stem(file, part),
            size=self._size,
            last=last,
            file=file,
            num_images=num_images,
        )

    def _crops(self, file: int) -> Iterator[dict[str, Any]]:
        """Yield each row of a file as often as there are crops of its picture."""
        for example in self._examples(file):
            for _ in range(self._preprocessing.crops):
                yield dict(example)

    def _examples(self, file: int) -> Iterator[dict[str, Any]]:
        stream = self._stream
        files = StreamFiles(stream.dataset, names=stream.files, source=stream.source, rules=_RULES)
        return files.file(file)

    def _read(self, example: dict[str, Any], *, sample: int) -> EncodingImage:
        cells = self._stream.cells
        cell = example.pop(self._stream.image_column)
        file, number = divmod(sample, FILE_STRIDE)
        number //= self._preprocessing.crops
        name = cells.name(cell, row=number)
        if name == f"row {number}":
            name = f"file {file} {name}"
        label = example.pop(self._stream.label_column or "", None)
        image = file * FILE_STRIDE + number
        row = Row(sample=sample, image=image, source=name, label=label, columns=cells.columns(example))
        try:
            stored = Stored(source=cells.content(cell, row=number), name=name, rules=cells.rules)
            pixels, original = self._preprocessing.read(stored, size=self._size, sample=sample)
        except UnreadableImage as error:
            row.reason = error.reason
            return EncodingImage(row=row)
        row.size = list(original)
        return EncodingImage(row=row, pixels=pixels, noise=self._preprocessing.noise(sample, size=self._size))
