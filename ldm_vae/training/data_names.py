"""Which images a run trains on: the number and digest of their names, and what changed since."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ldm_vae.system.files import whole_or_absent

LONGEST_LIST = 2_000_000  # names of larger collections are digested, but not listed in the run's folder
_NUM_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class DataNames:
    """Number of names, and the digest of all of them in the order of the collection."""

    number: int
    sha256: str


def digest_names(names: Iterable[str]) -> DataNames:
    """Return the number and digest of names."""
    digest, number = hashlib.sha256(), 0
    for name in names:
        digest.update(name.encode(errors="surrogatepass") + b"\0")
        number += 1
    return DataNames(number=number, sha256=digest.hexdigest())


def write_names(path: Path, names: Iterable[str]) -> None:
    """Write a list of names, whole or not at all."""
    with whole_or_absent(path) as temporary, gzip.open(temporary, "wb", compresslevel=1) as file:
        for name in names:
            file.write(_line(name))


def read_names(path: Path, *, expected: DataNames) -> list[str] | None:
    """Return the names that were written; None where there is no list of the `expected` names."""
    try:
        with gzip.open(path, "rb") as file:
            names = list(_names(file))
    except (OSError, EOFError, ValueError, zlib.error):
        return None
    return names if digest_names(names) == expected else None


def describe_change(before: list[str] | None, now: list[str], *, number_before: int) -> str:
    """Return, as part of a sentence, how two lists of names differ.

    Args:
        before: The names of the images that the run had so far; None where they were not kept.
        now: The names of the images that the run has now.
        number_before: Number of images that the run had so far.
    """
    if before is None:
        return f"{len(now):,} images, after {number_before:,}, with other names or in another order"
    old, new = set(before), set(now)
    added, gone = [name for name in now if name not in old], [name for name in before if name not in new]
    if not added and not gone:
        return f"the same {len(now):,} names in another order" if len(now) == len(before) else "names that repeat"
    parts = [f"{len(names):,} {word}" + _first(names) for names, word in ((added, "added"), (gone, "gone")) if names]
    return f"{' and '.join(parts)}, {len(now):,} now after {len(before):,}"


def _first(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_NUM_SHOWN])
    return f" ({shown}{', …' if len(names) > _NUM_SHOWN else ''})"


def _line(name: str) -> bytes:
    """Return a name as one line, with backslashes and line breaks escaped."""
    return name.replace("\\", "\\\\").replace("\n", "\\n").encode(errors="surrogatepass") + b"\n"


def _names(lines: Iterable[bytes]) -> Iterator[str]:
    for line in lines:
        parts = line.decode(errors="surrogatepass").removesuffix("\n").split("\\\\")
        yield "\\".join(part.replace("\\n", "\n") for part in parts)
