"""A collection's pictures in batches, as exploring goes through them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from torch import Tensor

from ldm_vae.config.commands.explore import ExploreDataOptions
from ldm_vae.config.rules import FieldError
from ldm_vae.encoding.decode import picture_names, safe_parts
from ldm_vae.exploring.codec import Codec
from ldm_vae.images.collection import ImageCollection, open_collection
from ldm_vae.images.evaluation import EvaluationBatch, EvaluationImages, evaluation_batches, spread_indices
from ldm_vae.images.guard import SkippedImage
from ldm_vae.system.cores import count_workers
from ldm_vae.system.progress import progress


class PictureBatches:
    """Goes through the pictures that a command's option names.

    Args:
        options: The command's.
        codec: The autoencoder, for whose channels and factor pictures are read.
        field: The option: `data`, `towards`, `away_from`.
        resolution: Side of the square pictures; None: whole ones, cut about their middles.
        all_of: Whether all are wanted, whatever `num_images` says.

    Raises:
        ValueError: There are none of that name.
    """

    def __init__(
        self,
        options: ExploreDataOptions,
        codec: Codec,
        *,
        field: str = "data",
        resolution: int | None,
        all_of: bool = False,
    ) -> None:
        self._options, self._field = options, field
        self.collection: ImageCollection = open_collection(
            getattr(options, field),
            split=options.split,
            image_column=options.image_column,
            rules=options,
            field=field,
        )
        self.indices: Sequence[int] = spread_indices(
            len(self.collection), num_images=None if all_of else options.num_images
        )
        """Numbers in the collection of those that are wanted."""
        self.skipped: list[SkippedImage] = []
        """Those that couldn't be read, so far."""
        self._dataset = EvaluationImages(
            self.collection,
            channels=codec.family.in_channels,
            resolution=resolution,
            multiple_of=codec.family.spatial_factor,
        )

    def __len__(self) -> int:
        return len(self.indices)

    def stems(self) -> dict[int, str]:
        """Return a path without suffix for each picture by its number: its own, made safe and unique in its folder."""
        sources = {index: self.collection.name(index) for index in self.indices}
        rows = [{"source": source, "sample": index} for index, source in sources.items()]
        stems = {}
        for (index, source), name in zip(sources.items(), picture_names(rows, suffix=""), strict=True):
            folders = safe_parts(source)[:-1] if "/" not in name else []  # one by its number keeps its class's folder
            stems[index] = str(PurePosixPath(*folders, name))
        return stems

    def __iter__(self) -> Iterator[tuple[EvaluationBatch, Tensor]]:
        """Yield batches that hold images, with these: [n, C, H, W] in [-1, 1].

        Raises:
            FieldError: None can be read or, where `strict`, one can't.
        """
        options = self._options
        with progress(len(self.indices), what=self._field, unit="img") as bar:
            for batch in evaluation_batches(
                self._dataset,
                indices=self.indices,
                batch_size=options.batch_size,
                num_workers=count_workers(options.num_workers),
            ):
                self.skipped += batch.skipped
                if options.strict and batch.skipped:
                    first = batch.skipped[0]
                    raise FieldError(f"<{self._field}>: the image {first.name} can't be read: {first.reason}")
                if batch.images is not None:
                    yield batch, batch.images
                bar.update(len(batch.indices) + len(batch.skipped))
        if len(self.skipped) == len(self.indices):
            raise FieldError(f"<{self._field}> {getattr(options, self._field)}: none of its pictures can be read")
