"""Order and randomness of a run as functions of (seed, k): nothing to save, nothing that a worker can shift."""

from __future__ import annotations

import hashlib

import numpy as np

_MASK = (1 << 64) - 1
_ROUNDS = 8
_LEAST_BITS = 8  # with fewer, not all orders of a handful of images are equally frequent


def sample_index(k: int, *, num_samples: int, seed: int) -> int:
    """Return the index in the collection of the k-th image of the run.

    Each epoch, the run's images [e·n, (e + 1)·n), is a pseudo-random permutation of the collection, keyed by
    (seed, epoch): a Feistel network over an even number of bits that holds n, walked until it lands inside
    (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). Neither memory nor time grow with n.

    Args:
        k: Number of the image in the run, from 0.
        num_samples: Images in the collection, n.
        seed: Seed of the run.
    """
    epoch, index = divmod(k, num_samples)
    half = max((num_samples - 1).bit_length() + 1, _LEAST_BITS) // 2
    mask = (1 << half) - 1
    digest = hashlib.blake2b(f"order/{seed}/{epoch}".encode(), digest_size=8 * _ROUNDS).digest()
    keys = [int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(_ROUNDS)]
    while True:
        left, right = index >> half, index & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        index = left << half | right
        if index < num_samples:
            return index


def sample_rng(k: int, *, seed: int, stream: str) -> np.random.Generator:
    """Return the generator of the k-th image's random numbers, one a `stream` ("crop", "flip", "noise").

    Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) with the key from (seed, stream) and
    the counter from k, so that no two of them overlap.
    """
    key = hashlib.blake2b(f"{stream}/{seed}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, dtype="<u8"), counter=[0, k, 0, 0]))


def _mix(value: int) -> int:
    """Spread each of 64 bits over all of them (the finalizer of SplitMix64)."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)
