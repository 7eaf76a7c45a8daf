"""What a user asks for where images are to be opened, and what is found."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import datasets
from datasets import Dataset, IterableDataset

from ldm_vae.config.reading import ReadingRules
from ldm_vae.config.rules import mark, within
from ldm_vae.images.cells import Cells
from ldm_vae.images.splits import choose_split, split_range
from ldm_vae.system.telling import tell
from ldm_vae.system.text import first_line, printable

HINT = "give a folder of images, parquet or webdataset (tar) files, or the id of a data set on the hub"
"""What messages propose to who named no data."""


@dataclass(kw_only=True)
class Source:
    """A data set with a column of images."""

    dataset: Dataset | IterableDataset
    image_column: str
    cells: Cells
    """Reads the image column."""
    files: list[str] = field(default_factory=list)
    """What the rows are kept in, such as names and sizes of files; none for images that are files themselves."""


@dataclass(kw_only=True)
class SourceRequest:
    """What a user asked for; see `open_collection`."""

    source: str
    split: str | None
    held_out: bool
    image_column: str | None
    option: str
    """The field that names the source: `data.train`, `data`."""
    streaming: bool
    rules: ReadingRules = field(default_factory=ReadingRules)
    recorded: bool = False
    """Whether `source` is from a run's record, where everything but a hub id is an absolute path or an address."""

    @property
    def shown(self) -> str:
        """What messages call the source."""
        return printable(self.source)

    def error(self, message: str) -> ValueError:
        """Return the error for the user, with the option that gave the source."""
        return within(mark(self.option), message)

    def tell(self, message: str) -> None:
        """Tell the user what was assumed or left out."""
        tell(f"{self.option} {self.shown}: {message}")

    def choose_split(self, splits: Collection[str], *, unnamed: bool = False) -> str:
        """Return the split to use, perhaps with its slice; `unnamed`: the data don't know splits."""
        try:
            chosen, note = choose_split(splits, split=self.split, held_out=self.held_out, source=self.shown)
        except ValueError as error:
            raise self.error(str(error)) from error
        if note is not None and not unnamed:
            tell(f"{self.option}: {note}")
        return chosen

    def slice(self, chosen: str, lengths: dict[str, int]) -> range:
        """Return the rows of a split with or without a slice."""
        try:
            return split_range(chosen, lengths)
        except ValueError as error:
            raise self.error(str(error)) from error


def one_line(error: BaseException) -> str:
    """Return the first line of what went wrong; of the cause, where `error` says only that something did."""
    if isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
