"""What a user asks for where images are to be opened, and what is found."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TypedDict, Unpack

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


class SourceOptions(TypedDict, total=False):
    """What may be said of a source beside its name."""

    split: str | None
    """Split to read, perhaps with a slice; None: `train`, or with `held_out` the first for validation or test that
    there is, else the only one."""
    held_out: bool
    """Whether images are wanted that aren't trained on."""
    image_column: str | None
    """Column of the images; None: the only image column there is."""
    field: str
    """What errors call the option that names the source; `data` by default."""
    rules: ReadingRules | None
    """What may be read, and what it may cost."""
    recorded: bool
    """Whether the source is from a run's config, in which a hub id stays one, whatever lies here."""


def source_request(source: str, *, streaming: bool, **options: Unpack[SourceOptions]) -> SourceRequest:
    """State what a user asks for, by a path, a glob or a hub id."""
    return SourceRequest(
        source=source,
        split=options.get("split"),
        held_out=options.get("held_out", False),
        image_column=options.get("image_column"),
        option=options.get("field", "data"),
        streaming=streaming,
        rules=(options.get("rules") or ReadingRules()).reading_rules(),
        recorded=options.get("recorded", False),
    )


def one_line(error: BaseException) -> str:
    """Return the first line of what went wrong; of the cause, where `error` says only that something did."""
    if isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
