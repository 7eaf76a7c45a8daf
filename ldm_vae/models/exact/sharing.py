"""The rows of one image over the processes of a node: who holds which, and what they tell each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ldm_vae.models.exact.maps import RowMap, rows_of


@dataclass(frozen=True)
class Sharing:
    """The processes that share an image; None is this one alone."""

    group: dist.ProcessGroup | None = None

    @property
    def num_processes(self) -> int:
        """How many there are."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        """This one's number among them."""
        return 0 if self.group is None else dist.get_rank(self.group)

    def rows(self, height: int, rank: int | None = None) -> tuple[int, int]:
        """The rows of a map of this height that a process holds; by default this one."""
        rank = self.rank if rank is None else rank
        return height * rank // self.num_processes, height * (rank + 1) // self.num_processes

    def exchange(self, source: RowMap, needed: list[tuple[int, int]]) -> None:
        """Give each process the rows of a map that it needs beside its own.

        Args:
            source: This process's part.
            needed: The rows [first, last) that each process needs.
        """
        if self.group is None:
            return
        works: list[dist.P2POp] = []
        above: list[Tensor] = []
        below: list[Tensor] = []
        for giver in range(self.num_processes):
            held = self.rows(source.height, giver)
            for taker, (first, last) in enumerate(needed):
                begin, end = max(first, held[0]), min(last, held[1])
                if giver == taker or begin >= end:
                    continue
                if giver == self.rank:
                    rows = rows_of(source.read(begin, end)).clone()
                    works.append(dist.P2POp(dist.isend, rows, group=self.group, group_peer=taker))
                elif taker == self.rank:
                    rows = source.empty(end - begin)
                    works.append(dist.P2POp(dist.irecv, rows, group=self.group, group_peer=giver))
                    (above if giver < self.rank else below).append(rows)
        for work in dist.batch_isend_irecv(works) if works else []:
            work.wait()
        source.put_halo(above=torch.cat(above) if above else None, below=torch.cat(below) if below else None)

    def gather(self, own: Tensor, sizes: list[int]) -> Tensor:
        """Put together the tensors of all processes along dimension 0, in the order of their ranks.

        Args:
            own: This process's tensor.
            sizes: The length of each process's.
        """
        if self.group is None:
            return own
        parts = [own.new_empty((size, *own.shape[1:])) for size in sizes]
        parts[self.rank].copy_(own)
        for rank, part in enumerate(parts):
            if sizes[rank]:
                dist.broadcast(part, group_src=rank, group=self.group)
        return torch.cat(parts)
