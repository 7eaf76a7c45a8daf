"""The codes that stored numbers mean: an array beside the shards."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import torch
from torch import Tensor

from ldm_vae.latents.shards import CODEBOOK
from ldm_vae.system.store import Store


def look_up(indices: Tensor, codes: Tensor) -> Tensor:
    """Return the latents [..., d, h, w] of numbers of codes [..., 1, h, w].

    Args:
        indices: In any type of integers.
        codes: [n, d].
    """
    return codes[indices.squeeze(-3).to(torch.int64)].movedim(-1, -3)


def write_codebook(store: Store, codes: Tensor) -> None:
    """Write the codes [n, d], float32, which every process of an encode does alike."""
    content = io.BytesIO()
    np.save(content, codes.numpy(), allow_pickle=False)
    if not store.exists(CODEBOOK) or store.read(CODEBOOK) != content.getvalue():
        store.write_whole(CODEBOOK, content.getvalue())


def read_codebook(store: Store, *, sha256: str) -> Tensor:
    """Read the codes [n, d], float32, from a file of this digest.

    Raises:
        ValueError: They aren't there, or aren't whole.
    """
    try:
        content = store.read(CODEBOOK)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError("its digest isn't the one in the index")
        codes = np.load(io.BytesIO(content), allow_pickle=False)
        if codes.ndim != 2 or codes.dtype != np.float32:
            raise ValueError(f"an array of {codes.dtype} {list(codes.shape)}")
    except FileNotFoundError:
        raise ValueError(
            f"{store.place(CODEBOOK)} is missing; start the same encode again, it writes it anew"
        ) from None
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(
            f"{store.place(CODEBOOK)} is not the codebook ({error}); start the same encode again, it writes it anew"
        ) from None
    return torch.from_numpy(codes)
