"""Memory that the C library holds for a process."""

from __future__ import annotations

import ctypes

# glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> None:
    """Let the C library keep memory that is freed, for the next step to take again.

    glibc gives large blocks back to the system at once. Each page that is then asked for anew costs a fault and is
    filled with zeros first: a sixth of a training step in float32, and more than all that is elementwise in it. Where
    the C library is another, nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, -1)  # never
        mallopt(_M_MMAP_MAX, 0)  # no blocks of their own


def release_freed_memory() -> None:
    """Let the C library give back what was freed, after all.

    To be called before a fork: else each of these pages is copied when it is written to again, for as long as the
    child lives.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
