"""Training images from a stream: read in its own order, without a local copy and without random access."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from typing import Any, ClassVar, Unpack

import numpy as np
from datasets import ClassLabel, Dataset
from datasets import IterableDataset as Stream
from torch.utils.data import IterableDataset

from ldm_vae.images.bands import Picture
from ldm_vae.images.cells import Cells, label_column
from ldm_vae.images.collection import ImageCollection
from ldm_vae.images.decoding import read_crop
from ldm_vae.images.guard import SkippedImage, UnreadableImage
from ldm_vae.images.request import SourceOptions, source_request
from ldm_vae.images.sources import open_source
from ldm_vae.images.stream_files import FileRules, StreamError, StreamFiles
from ldm_vae.images.training import Augmentation, TrainingSample
from ldm_vae.system.randomness import sample_rng

_SHARDS_OF_A_FOLDER = 64
_AHEAD = 4


@dataclass(kw_only=True)
class ImageStream:
    """A stream of undecoded images."""

    noun: ClassVar[str] = "image"

    source: str
    """What the user named."""
    dataset: Stream
    image_column: str
    cells: Cells
    """Reads the image column and the others."""
    features: Mapping[str, Any]
    """What the data set says of the columns but for the images, by name."""
    label_column: str | None
    """The column that holds the classes, chosen as `ImageCollection` does."""
    label_names: list[str] | None
    """The classes' names by number, where the data set knows them."""
    files: list[str] = field(default_factory=list)
    """What the rows are kept in, such as names and sizes of files; none for images that are files themselves."""
    collection: ImageCollection | None = None
    """The same images by number, where they have one."""


def open_stream(source: str, **options: Unpack[SourceOptions]) -> ImageStream:
    """Open as a stream what `open_collection` opens, with the same arguments.

    Raises:
        ValueError: There is no such source, it holds no images, or split or column don't fit it.
    """
    request = source_request(source, streaming=True, **options)
    opened = open_source(request)
    dataset, collection = opened.dataset, None
    if isinstance(dataset, Dataset):
        collection = ImageCollection(opened)
        dataset = dataset.to_iterable_dataset(num_shards=max(1, min(len(dataset), _SHARDS_OF_A_FOLDER)))
    features = dataset.features if dataset.features is not None else dataset._resolve_features().features
    others = {name: feature for name, feature in features.items() if name != opened.image_column}
    label = label_column(others)
    names = others[label].names if label is not None and isinstance(others[label], ClassLabel) else None
    return ImageStream(
        source=source,
        dataset=dataset,
        image_column=opened.image_column,
        cells=opened.cells,
        features=others,
        label_column=label,
        label_names=names,
        files=opened.files,
        collection=collection,
    )


@dataclass(kw_only=True, frozen=True)
class _Example:
    """An undecoded image of a process: the `row`-th of pass `epoch`, and the run's `k`-th."""

    k: int
    epoch: int
    row: int
    cell: Any


class StreamingImages:
    """The run's images from a stream, which is read again and again.

    Each process reads its part of the stream's files (`StreamFiles`). The j-th image that process r of P reads has the
    crop, flip and noise of k = j·P + r. Where it can't be read, it is replaced by the next one that can, which keeps
    its own place too.

    Args:
        stream: The images.
        augmentation: How they become training images.
        shuffle_buffer: Images that the stream is shuffled within, differently in each pass; 0 keeps its order.
        rules: What becomes of files that can't be read.
    """

    def __init__(
        self,
        stream: ImageStream,
        augmentation: Augmentation,
        *,
        shuffle_buffer: int = 0,
        rules: FileRules | None = None,
    ) -> None:
        self._stream = stream
        self._augmentation = augmentation
        self._shuffle_buffer = shuffle_buffer
        self._rules = rules or FileRules()

    def data_names(self) -> Iterator[str]:
        """Yield what tells this stream from another: see `ImageCollection.data_names`."""
        if self._stream.collection is not None:
            return self._stream.collection.data_names()
        return iter(self._stream.files or [self._stream.source])

    def samples(
        self, *, start: int, process_index: int = 0, num_processes: int = 1, num_threads: int = 0
    ) -> Iterator[TrainingSample]:
        """Yield this process's samples from its `start`-th on, without end; what comes before is read, not decoded.

        Args:
            start: First sample, by its number in this process.
            process_index: This process, r.
            num_processes: P.
            num_threads: Threads that decode ahead; 0: none, and nothing is decoded before it is asked for.

        Raises:
            UnreadableImage: An image can't be read, and the augmentation is strict.
            ValueError: No image of this process can be read.
            StreamError: The stream broke off.
        """
        waiting: list[tuple[_Example, UnreadableImage]] = []
        files = StreamFiles(
            self._stream.dataset.select_columns([self._stream.image_column]),
            names=self._stream.files,
            source=self._stream.source,
            rules=self._rules,
            process_index=process_index,
            num_processes=num_processes,
        )
        examples = self._examples(files, start, process_index, num_processes)
        for example, picture in self._decoded(examples, num_threads):
            if isinstance(picture, UnreadableImage):
                waiting.append((example, picture))
                self._check_readable(waiting)
                continue
            for missed, error in waiting:
                skipped = SkippedImage(index=missed.row, name=error.name, reason=error.reason)
                replacement = self._read(dataclasses.replace(example, k=missed.k))
                yield self._augmentation.sample(missed.k, replacement, [skipped])
            waiting.clear()
            dead = [SkippedImage(index=file.number, name=file.name, reason=file.reason) for file in files.dead]
            del files.dead[: len(dead)]
            yield self._augmentation.sample(example.k, picture, dead)

    def _check_readable(self, waiting: list[tuple[_Example, UnreadableImage]]) -> None:
        """Raise if a whole pass went by without a readable image, or the augmentation is strict."""
        (first, error), (last, _) = waiting[0], waiting[-1]
        if self._augmentation.strict:
            raise error
        if last.epoch > first.epoch + (first.row > 0):
            raise ValueError(
                f"no image that this process reads from {self._stream.source} can be read; the first: "
                f"{error.name}: {error.reason}"
            )

    def _decoded(
        self, examples: Iterator[_Example], num_threads: int
    ) -> Iterator[tuple[_Example, Picture | UnreadableImage]]:
        """Yield the examples with their crops, or why there is none, decoded ahead by `num_threads`."""
        if num_threads == 0:
            for example in examples:
                yield example, self._try_read(example)
            return
        ahead: deque[tuple[_Example, Future[Picture | UnreadableImage]]] = deque()
        with ThreadPoolExecutor(num_threads) as pool:
            for example in examples:
                ahead.append((example, pool.submit(self._try_read, example)))
                if len(ahead) > _AHEAD * num_threads:
                    example, future = ahead.popleft()
                    yield example, future.result()

    def _try_read(self, example: _Example) -> Picture | UnreadableImage:
        try:
            return self._read(example)
        except UnreadableImage as error:
            return error

    def _read(self, example: _Example) -> Picture:
        augmentation, cells = self._augmentation, self._stream.cells
        return read_crop(
            **cells.stored(example.cell, row=example.row),
            channels=augmentation.channels,
            resolution=augmentation.size_of(example.k),
            box_of=augmentation.box_of(example.k),
        )

    def _examples(self, files: StreamFiles, start: int, process_index: int, num_processes: int) -> Iterator[_Example]:
        """Yield this process's undecoded images from the `start`-th on, pass after pass."""
        position, lengths, shares = 0, list[int](), False
        for epoch in count():
            length = 0
            rng = sample_rng(epoch * num_processes + process_index, seed=self._augmentation.seed, stream="stream")
            rows = files.all_rows() if shares else files.rows(epoch)
            cells = (row[self._stream.image_column] for row in rows)
            for row, cell in enumerate(self._shuffled(cells, rng)):
                if position >= start:
                    yield _Example(k=position * num_processes + process_index, epoch=epoch, row=row, cell=cell)
                position, length = position + 1, row + 1
            lengths = [*lengths[1 - files.num_kinds :], length] if files.num_kinds > 1 else [length]
            if len(lengths) < files.num_kinds:
                continue
            if not any(lengths):
                if shares or num_processes == 1 or files.num_kinds > 1:
                    raise self._nothing_in(files)
                shares = True  # no image fell to this process, so it shares in everybody's
            elif position < start and not self._shuffle_buffer:
                position += (start - position) // sum(lengths) * sum(lengths)  # the same come again and again

    def _nothing_in(self, files: StreamFiles) -> Exception:
        message = f"{self._stream.source} holds no image"
        if files.dead:
            return StreamError(f"{message} that can be read; {files.dead[0].name}: {files.dead[0].reason}")
        return ValueError(message)

    def _shuffled(self, cells: Iterator[Any], rng: np.random.Generator) -> Iterator[Any]:
        """Yield each cell once, in random order within the buffer.

        `datasets`' own shuffling isn't used: version 5.2 waits for ever where a process has few of the files.
        """
        buffer: list[Any] = []
        for cell in cells:
            if len(buffer) < self._shuffle_buffer:
                buffer.append(cell)
            elif buffer:
                place = int(rng.integers(len(buffer)))
                yield buffer[place]
                buffer[place] = cell
            else:
                yield cell
        for place in rng.permutation(len(buffer)):
            yield buffer[place]


class LocalSamples(IterableDataset):
    """`StreamingImages.samples` with its arguments, for a loader's worker."""

    def __init__(self, images: StreamingImages, **arguments: int) -> None:
        self._images = images
        self._arguments = arguments

    def resumed(self, num_samples: int) -> LocalSamples:
        """Return the samples from the `num_samples`-th of these on."""
        return LocalSamples(self._images, **{**self._arguments, "start": self._arguments["start"] + num_samples})

    def __iter__(self) -> Iterator[TrainingSample]:
        return self._images.samples(**self._arguments)
