"""Progress of long work: a bar on a terminal, and in a log file a line now and then."""

from __future__ import annotations

import io
import sys
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 60.0
_LINE = "{desc}: {percentage:3.0f}%, {n_fmt} of {total_fmt} {unit}, {elapsed}<{remaining}, {rate_fmt}{postfix}"
_LINE_WITHOUT_TOTAL = "{desc}: {n_fmt} {unit}, {elapsed}, {rate_fmt}{postfix}"


def progress(
    total: int | None,
    *,
    what: str,
    unit: str,
    initial: int = 0,
    show: bool = True,
    leave: bool = True,
    seconds_between_lines: float = SECONDS_BETWEEN_LINES,
) -> tqdm:
    """Return a bar on stderr, which is updated, written over and closed like tqdm's.

    Where stderr is no terminal, the bar writes a whole line now and then instead of drawing over itself.

    Args:
        total: Pieces of work; None where it isn't known.
        what: What is done, before the figures.
        unit: What a piece is called.
        initial: Pieces that were done before; they don't count in the rate.
        show: False for processes that are to be silent.
        leave: Whether the bar stays on the terminal when it is closed.
        seconds_between_lines: Least time between two lines of a log; infinite: a line only where `refresh` is called.
    """
    if sys.stderr.isatty():
        return tqdm(
            total=total, desc=what, unit=unit, initial=initial, disable=not show, leave=leave, dynamic_ncols=True
        )
    return _Lines(
        total=total,
        desc=what,
        unit=unit,
        initial=initial,
        disable=not show,
        mininterval=seconds_between_lines,
        miniters=1,
        bar_format=_LINE if total is not None else _LINE_WITHOUT_TOTAL,
    )


class _Lines(tqdm):
    """A bar whose states are lines."""

    monitor_interval = 0  # no thread that asks for more lines

    def __init__(self, **options: Any) -> None:
        self._begun = False
        super().__init__(**options)
        self._begun = True

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write the state as a line; none at the very beginning."""
        if self._begun:
            self.fp.write(f"{msg or self}\n")
            self.fp.flush()

    def close(self) -> None:
        """Write the last state."""
        if not self.disable:
            self.display()
            self.fp = io.StringIO()  # what a bar writes to leave its line
            super().close()

    def clear(self, nolock: bool = False) -> None:
        """Do nothing: lines stay."""

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        """Set what the next line ends with."""
        super().set_postfix_str(s, refresh=False)

    def set_description_str(self, desc: str | None = None, refresh: bool | None = True) -> None:
        """Set what the next line begins with."""
        super().set_description_str(desc, refresh=False)

    @classmethod
    def write(cls, s: str, file: Any = None, end: str = "\n", nolock: bool = False) -> None:
        """Write a message between the lines."""
        (sys.stderr if file is None else file).write(s + end)
