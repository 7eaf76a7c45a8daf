"""Parts of a store's files, kept in memory up to a bound, so that rows beside each other cost one request."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from ldm_vae.system.store import Store

BLOCK_BYTES = 1 << 20


class BlockCache:
    """Reads files by range requests of whole blocks, and keeps the blocks that were asked for last.

    Args:
        store: Where the files are; they must not change.
        limit_bytes: The most bytes that are kept. At least one block is.
        block_bytes: Bytes a block.
    """

    def __init__(self, store: Store, *, limit_bytes: int, block_bytes: int = BLOCK_BYTES) -> None:
        self.store, self._limit_bytes, self._block_bytes = store, limit_bytes, block_bytes
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self.num_bytes = 0
        """Bytes that are kept."""
        self.num_requests = 0
        """Range requests that were made."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_blocks": OrderedDict(), "num_bytes": 0}

    def read(self, name: str, start: int, length: int) -> bytes:
        """Return `length` bytes of a file from `start` on; fewer where it ends before."""
        if length <= 0:
            return b""
        first, last = start // self._block_bytes, (start + length - 1) // self._block_bytes
        missing = [block for block in range(first, last + 1) if (name, block) not in self._blocks]
        fetched = self._fetch(name, missing[0], missing[-1]) if missing else {}
        content = b"".join(fetched[block] if block in fetched else self._kept(name, block)
                           for block in range(first, last + 1))  # fmt: skip
        for block, bytes_ in fetched.items():
            self._keep(name, block, bytes_)
        offset = start - first * self._block_bytes
        return content[offset : offset + length]

    def _fetch(self, name: str, first: int, last: int) -> dict[int, bytes]:
        self.num_requests += 1
        size = self._block_bytes
        content = self.store.read_range(name, first * size, (last + 1 - first) * size)
        return {first + i: content[i * size : (i + 1) * size] for i in range(last + 1 - first)}

    def _kept(self, name: str, block: int) -> bytes:
        self._blocks.move_to_end((name, block))
        return self._blocks[name, block]

    def _keep(self, name: str, block: int, content: bytes) -> None:
        self.num_bytes += len(content) - len(self._blocks.pop((name, block), b""))
        self._blocks[name, block] = content
        while self.num_bytes > self._limit_bytes and len(self._blocks) > 1:
            self.num_bytes -= len(self._blocks.popitem(last=False)[1])
