"""Tensors to files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, metadata: dict[str, str] | None = None) -> None:
    """Write contiguous tensors as safetensors, with the permissions that any new file gets (its own are 0600).

    Raises:
        OSError: They can't be written.
    """
    path.touch()
    permissions = path.stat().st_mode
    try:
        save_file(dict(tensors), path, metadata=metadata)
    except SafetensorError as error:  # what it makes of a full disk
        reason = str(error).rpartition("I/O error: ")[2].partition(" (os error")[0]
        raise OSError(f"{path} can't be written: {reason}") from None
    path.chmod(permissions)
