"""Sizes of a collection's pictures, from their headers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch.utils.data import Dataset

from ldm_vae.images.collection import ImageCollection
from ldm_vae.images.guard import UnreadableImage
from ldm_vae.images.transforms import Size
from ldm_vae.system.workers import load

_HEADERS_AT_ONCE = 256


class _Headers(Dataset):
    def __init__(self, collection: ImageCollection, channels: int) -> None:
        self._collection, self._channels = collection, channels

    def __getitem__(self, image: int) -> Size | None:
        try:
            return self._collection.size(image, channels=self._channels)
        except UnreadableImage:
            return None


def picture_sizes(
    collection: ImageCollection, images: Sequence[int], *, channels: int, num_workers: int, timeout_seconds: float
) -> Iterator[Size | None]:
    """Yield (width, height) of the pictures `images`, upright, in this order; None where a header can't be read.

    Args:
        collection: The pictures.
        images: Their numbers.
        channels: Channels of the pictures, which tell the axes of an array apart.
        num_workers: Processes that read headers; 0: this one does.
        timeout_seconds: Longest wait for a worker.

    Raises:
        DataWorkerError: A worker died, or gave nothing for `timeout_seconds`.
    """
    batches = [images[start : start + _HEADERS_AT_ONCE] for start in range(0, len(images), _HEADERS_AT_ONCE)]
    for batch in load(
        _Headers(collection, channels),
        collate=list,
        batch_sampler=batches,
        num_workers=num_workers,
        timeout_seconds=timeout_seconds,
        pin_memory=False,
    ):
        yield from batch
