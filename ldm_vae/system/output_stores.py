"""Outputs at addresses: the same questions as of a folder, and the same care for what others keep there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ldm_vae.config.rules import FieldError, mark
from ldm_vae.system.output_kinds import MARK_BYTES, OutputKind, is_marked
from ldm_vae.system.outputs import OutputFolder
from ldm_vae.system.paths import name_refusal
from ldm_vae.system.places import is_address, open_store
from ldm_vae.system.store import Store, StoreError
from ldm_vae.system.text import printable

_UNFINISHED = ".ldm-vae-unfinished"
"""Name of an object that is there while a process puts an output of several objects."""
_PROBE = ".ldm-vae-probe"
"""Name of an object that is there for a moment; always the same, so that the next command removes what one leaves."""


def output_at(place: str | Path | Store, *, kind: OutputKind, field: str = "output") -> OutputFolder:
    """Return the output at a path or an address.

    Raises:
        ValueError: The address can't be used, naming the option.
    """
    folder = place.folder if isinstance(place, Store) else None if is_address(place) else Path(place)
    if folder is not None:
        return OutputFolder(folder, kind=kind, field=field)
    try:
        return OutputObjects(open_store(place), kind=kind, field=field)
    except StoreError as error:
        raise FieldError(f"{mark(field)} {error}") from None


def is_marked_store(store: Store, kind: OutputKind) -> bool:
    """Whether a store holds the mark of a kind of output."""
    if store.folder is not None:
        return is_marked(store.folder, kind)
    try:
        return kind.is_said_in(store.read_range(kind.mark, 0, MARK_BYTES))
    except FileNotFoundError:
        return False


class OutputObjects(OutputFolder):
    """An address that a command is to write under; the arguments are `OutputFolder`'s, with a store for the path."""

    def __init__(self, store: Store, *, kind: OutputKind, field: str = "output") -> None:
        self.store, self.kind, self.field = store, kind, field
        self.shown = store.place()

    def check_writable(self) -> None:
        """Find out whether objects can be written, read and removed there, by one that is removed again.

        Raises:
            ValueError: They can't, with the reason.
        """
        try:
            self.store.write_whole(_PROBE, b"")
            self.store.remove(_PROBE)
        except (StoreError, FileNotFoundError) as error:
            raise FieldError(f"{mark(self.field)} {error}") from None

    def begin(self, files: Iterable[str], *, mark: bytes, listed: Iterable[str] = ()) -> None:
        """Remove an earlier output and write the mark.

        Raises:
            ValueError: An object is there that no earlier output wrote, or a name leads elsewhere.
        """
        listed = list(listed)
        there = self._listing()
        for name in files:
            self._require_inside(name)
            if name not in listed and (name in there if "/" not in name else self.store.exists(name)):
                self._require(False, f"holds {self._foreign([name])}")
        self.clear(listed=listed)
        self.store.write_whole(self.kind.mark, mark)

    @contextmanager
    def whole(self, *, overwrite: bool) -> Iterator[Path]:
        """Yield a temporary folder here, whose files are put when the block ends: the mark last.

        Where the block raises, nothing changes. Where the process ends while it puts, the mark isn't there, and the
        next may write again without `overwrite`.

        Raises:
            ValueError: Nothing may be written there (`check`), found before the block runs.
        """
        self.check(overwrite=overwrite or (self._is_interrupted() and not self._is_marked()))
        with tempfile.TemporaryDirectory(prefix="ldm-vae-") as temporary:
            yield Path(temporary)
            self.store.write_whole(_UNFINISHED, b"")
            self.clear(mark_first=True)
            for name in sorted(os.listdir(temporary), key=lambda name: name == self.kind.mark):
                with self.store.writing(name) as path:
                    shutil.move(Path(temporary, name), path)
            self.store.remove(_UNFINISHED)

    def clear(self, *, listed: Iterable[str] = (), mark_first: bool = False) -> None:
        """Remove what the command wrote and nothing else; the mark last, unless `mark_first`."""
        listed = list(listed)
        for name in listed:
            self._require_inside(name)
        own = self.own()
        for name in [*own, *listed] if mark_first else [*listed, *reversed(own)]:
            self.store.remove(name)

    def _is_marked(self) -> bool:
        return is_marked_store(self.store, self.kind)

    def _is_interrupted(self) -> bool:
        return _UNFINISHED in self._listing()

    def _names(self) -> list[str]:
        return [name.rstrip("/") for name in self._listing()]

    def _listing(self) -> dict[str, int]:
        return self.store.sizes()

    def _require_inside(self, name: str) -> None:
        reason = name_refusal(name)
        self._require(reason is None, f"lists '{printable(name)}', which {reason}")
