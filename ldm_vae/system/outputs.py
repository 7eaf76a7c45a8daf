"""Folders that commands write: whether one may be written, and what replacing it removes."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ldm_vae.config.rules import FieldError, mark
from ldm_vae.system.files import (
    is_temporary,
    naming_instead,
    remove_temporaries,
    sync_folder,
    temporary_path,
    write_whole,
)
from ldm_vae.system.output_kinds import OutputKind, is_marked
from ldm_vae.system.paths import inside
from ldm_vae.system.text import printable

_OVERWRITE = mark("overwrite")
_NAMED = 3
_NOT_OURS = ("lost+found", "Thumbs.db", "desktop.ini", "@eaDir", "System Volume Information", "$RECYCLE.BIN")
"""What file systems and file managers put into folders that are empty to their users. Hidden names count as such."""


class OutputFolder:
    """A folder that a command is to write.

    Args:
        path: The folder, which need not exist; `~` is the user's home.
        kind: What the command writes.
        field: The option that named the folder, for messages.
    """

    def __init__(self, path: str | Path, *, kind: OutputKind, field: str = "output") -> None:
        self.path, self.kind, self.field = Path(path).expanduser(), kind, field
        self.shown = str(self.path)

    def own(self) -> list[str]:
        """Return the names in the folder that the command writes, the mark first."""
        names = [name for name in self._names() if self.kind.owns(name)]
        return sorted(names, key=lambda name: (name != self.kind.mark, name))

    def others(self) -> list[str]:
        """Return the names in the folder that the command doesn't write, without hidden ones."""
        names = (name for name in self._names() if not self.kind.owns(name))
        return sorted(name for name in names if not name.startswith(".") and name not in _NOT_OURS)

    def check(self, *, overwrite: bool) -> None:
        """Find out, before any long work, whether the folder may be written; nothing is changed.

        Raises:
            ValueError: The path is a file, can't be written, or holds an earlier output that isn't to be replaced, or
                things that the command didn't write.
        """
        self.check_writable()
        own, others = self.own(), self.others()
        marked = self._is_marked()
        if self.kind.alone:
            foreign = others or ([] if marked or self._is_interrupted() else own)
            self._require(not foreign, f"holds {self._foreign(foreign)}")
            self._require(overwrite or not own, f"holds {self.kind.what} already; {_OVERWRITE} replaces it")
        else:
            self._require(
                overwrite or not (own or others),
                f"holds other things ({_listed(own or others)}); take an empty folder, or {_OVERWRITE} it",
            )
            self._require(marked or self.kind.mark not in own, f"holds {self._foreign([self.kind.mark])}")

    def check_writable(self) -> None:
        """Find out whether files can be made where the folder is or will be, whatever else it holds.

        Raises:
            ValueError: The path is a file, or can't be written.
        """
        self._require(
            self.path.is_dir() or not os.path.lexists(self.path),
            f"is {'a file' if self.path.exists() else 'a link that leads nowhere'}; name a folder",
        )
        place = self.path.resolve()
        while not place.exists() and place != place.parent:
            place = place.parent
        self._require(place.is_dir(), f"can't be made: {place} is a file")
        probe = temporary_path(place / "probe")
        try:  # permissions alone don't tell
            probe.touch(exist_ok=False)
            probe.unlink()
        except OSError as error:
            self._require(False, f"can't be written: {place}: {error.strerror}")

    def begin(self, files: Iterable[str], *, mark: bytes, listed: Iterable[str] = ()) -> None:
        """Make the folder, remove an earlier output from it, and write the mark; for outputs that others may share.

        Args:
            files: The names that the command will write, with `/` between folders.
            mark: The mark's content, which lists them.
            listed: The names that the earlier output's mark lists.

        Raises:
            ValueError: A file is there that no earlier output wrote, or a name leads out of the folder; nothing is
                changed then.
        """
        listed = list(listed)
        before = {inside(self.path, name, source=self.path / self.kind.mark) for name in listed}
        for name in files:
            path = inside(self.path, name)
            if os.path.lexists(path) and path not in before:
                self._require(False, f"holds {self._foreign([name])}")
        self.path.mkdir(parents=True, exist_ok=True)
        self.clear(listed=listed)
        write_whole(self.path / self.kind.mark, mark)

    def clear(self, *, listed: Iterable[str] = (), mark_first: bool = False) -> None:
        """Remove what the command wrote and nothing else.

        Args:
            listed: Further names that the mark lists. All are looked at before the first is removed.
            mark_first: Remove the mark first instead of last, so that other processes see that the output is gone.

        Raises:
            OutsideFolder: A listed name leads out of the folder; nothing is removed then.
        """
        paths = [inside(self.path, name, source=self.path / self.kind.mark) for name in listed]
        own = [self.path / name for name in self.own()]
        for path in [*own, *paths] if mark_first else [*paths, *reversed(own)]:
            _remove(path)

    @contextmanager
    def whole(self, *, overwrite: bool) -> Iterator[Path]:
        """Yield a temporary folder whose contents become the output when the block ends.

        Where the block raises, nothing changes. A folder that exists already, which may be a mount point or lie in a
        parent that can't be written, is kept and filled, the mark last; a new one appears at once.

        Raises:
            ValueError: The folder may not be written (`check`), found before the block runs, or after it if another
                process has written there meanwhile.
        """
        self.check(overwrite=overwrite)
        folder = self.path.resolve()
        exists = folder.exists()
        parent = folder if exists else folder.parent
        parent.mkdir(parents=True, exist_ok=True)
        remove_temporaries(parent, older_than=math.inf)
        temporary = temporary_path(parent / folder.name)
        temporary.mkdir()
        try:
            with naming_instead(self.path, temporary):
                yield temporary
            self.check(overwrite=overwrite)
            if folder.exists():
                self._fill(folder, temporary)
            else:
                temporary.rename(folder)
            sync_folder(parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _fill(self, folder: Path, temporary: Path) -> None:
        """Exchange the output's parts for those in `temporary`; all or, where one can't be moved, none."""
        old = temporary_path(folder / "old")
        old.mkdir()
        moved: list[tuple[Path, Path]] = []

        def move(source: Path, target: Path) -> None:
            source.rename(target)
            moved.append((source, target))

        try:
            for name in self.own():
                move(folder / name, old / name)
            for name in sorted(os.listdir(temporary), key=lambda name: name == self.kind.mark):
                move(temporary / name, folder / name)
        except BaseException:
            for source, target in reversed(moved):
                target.rename(source)
            old.rmdir()
            raise
        shutil.rmtree(old, ignore_errors=True)

    def _is_marked(self) -> bool:
        return is_marked(self.path, self.kind)

    def _names(self) -> list[str]:
        return os.listdir(self.path) if self.path.is_dir() else []

    def _is_interrupted(self) -> bool:
        """Whether a process that was filling the folder died."""
        return any(is_temporary(name) for name in self._names())

    def _foreign(self, names: list[str]) -> str:
        return f"{_listed(names)}, which no {self.kind.noun} wrote; take another folder"

    def _require(self, condition: bool, message: str) -> None:
        if not condition:
            raise FieldError(f"{mark(self.field)} {printable(self.shown)} {message}")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(printable, names[:_NAMED])) + more


def _remove(path: Path) -> None:
    """Remove a file, a folder, or a link without what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError):
            path.unlink()
