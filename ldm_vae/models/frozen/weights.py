"""Where the weights of a frozen network are: a named file or folder, torch's cache, or a download.

They are read without running anything that a file holds.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ldm_vae.config.rules import FieldError, mark, within
from ldm_vae.models.weight_files import open_weights


def cached_file(name: str) -> Path:
    """Return where torch's cache keeps a file of this name, whether or not it is there."""
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def find_weights(name: str, *, source: str | None, url: str | None, field: str, purpose: str) -> Path:
    """Return the path of a weight file, which is downloaded into torch's cache if it isn't here.

    Args:
        name: The file's name as it is published.
        source: A file, or a folder that holds one of that name. Without it torch's cache is searched, then `url`.
        url: Where the file is published. Without it nothing is downloaded.
        field: The field that gives `source`, for the error.
        purpose: What needs the file, as in "loss.perceptual lpips_vgg", for the error.

    Raises:
        FieldError: The file isn't here and can't be downloaded. The message says which file to put where.
    """
    if source is not None:
        path = Path(source).expanduser()
        path = path / name if path.is_dir() else path
        if not path.is_file():
            raise within(mark(field), f"there is no file {path}; it is to be {name}, for {purpose}")
        return path
    path = cached_file(name)
    if path.is_file():
        return path
    reason = "which is not there"
    if url is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # torch's own download: under another name until it is whole, and checked against the hash in the name
            torch.hub.download_url_to_file(url, str(path), hash_prefix=_hash_in(name), progress=False)
        except (OSError, RuntimeError) as error:  # URLError is an OSError; RuntimeError: the hash is another
            reason = f"which could not be downloaded ({' '.join(str(error).split())})"
        else:
            return path
    raise FieldError(
        f"{purpose} needs {name}, {reason}; put it into {path.parent} or name it in {mark(field)}"
        + (f"; it is published at {url}" if url else "")
    )


def read_weights(path: Path, *, field: str) -> dict[str, Tensor]:
    """Return all tensors of a safetensors file or a torch pickle, by name, on the CPU.

    Raises:
        FieldError: The file is damaged, of another kind, or would run code. The message names `field`.
    """
    try:
        file = open_weights(path)
        return file.load(file.names)
    except ValueError as error:
        raise within(mark(field), error) from None


def _hash_in(name: str) -> str | None:
    """Return the first digits of the SHA-256 that torchvision writes into a file's name."""
    stem, _, digits = Path(name).stem.rpartition("-")
    return digits if stem else None
