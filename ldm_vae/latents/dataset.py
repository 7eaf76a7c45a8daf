"""Latents that `ldm-vae encode` wrote, as a torch data set: read row by row, normalised, sampled on request."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle
from torch.utils.data import Dataset

from ldm_vae.latents.blocks import BlockCache
from ldm_vae.latents.codebook import look_up, read_codebook
from ldm_vae.latents.index import plan_digest, read_index
from ldm_vae.latents.mapping import MEND, Rows, open_shard
from ldm_vae.latents.row_lines import RecordLines, RowLines
from ldm_vae.latents.shard_table import ShardTable
from ldm_vae.latents.shards import CHECKSUMS, CODEBOOK, NO_LABEL, row_checksums, tensor_names
from ldm_vae.system.float64 import float64_tensor
from ldm_vae.system.places import open_store
from ldm_vae.system.randomness import sample_rng
from ldm_vae.system.store import Store

_OPEN_SHARDS = 4096
"""Shards that are open at once: systems bound the number of files that a process maps (65,530 on Linux)."""


class LatentSample(NamedTuple):
    """One row; torch's default collation makes a batch of the same three fields."""

    latents: Tensor  # [c, h, w], float32
    label: int  # -1 where the collection has no labels
    sample: int  # the image's number in the collection


@dataclass(frozen=True, kw_only=True)
class LatentStats:
    """Mean and standard deviation a channel, over every row and position."""

    count: int
    mean: Tensor  # [c], float64
    std: Tensor  # [c], float64


class LatentDataset(Dataset[LatentSample]):
    """The rows of a folder of latents, here or at an address such as `s3://bucket/latents`.

    Shards that are here are mapped into memory when a row of theirs is first asked for; of others the rows are read by
    range requests, in blocks that are kept in memory up to a bound. Either way a row is read without its shard, and
    opening a folder costs one small file, or two where it has ten thousand shards or more. An instance can be pickled,
    forked and sent to spawned DataLoader workers, which each open the shards for themselves. Where images were encoded
    in buckets, rows differ in shape; `ldm_vae.latents.sampler.ShapeBatchSampler` makes batches of one shape.

    >>> import torch
    >>> from ldm_vae import LatentDataset
    >>> dataset = LatentDataset("latents", sample=True)
    >>> dataset[0].latents.shape
    torch.Size([4, 16, 16])
    >>> latents, labels, samples = next(iter(torch.utils.data.DataLoader(dataset, batch_size=2)))
    >>> samples
    tensor([0, 1])

    Args:
        directory: What `ldm-vae encode --output` wrote: a folder, or an address.
        sample: Draw from the posterior instead of returning its mean (folders of mode `moments` only). The noise is a
            function of (seed, epoch, the image's number), so it doesn't depend on workers, processes or order.
        normalize: `scaling` gives the latents that diffusers' pipelines denoise, (z - shift)·scale with the VAE's
            scaling factor (and latents_mean and latents_std, where it has them; FLUX.2's as patches, [4c, h/2, w/2],
            by the statistics of its batch norm); `channel` gives mean 0 and standard
            deviation 1 a channel by `stats()`; `none` gives the VAE's own latents.
        random_flip: Take the mirrored image's latents for half of the rows, anew each epoch (folders written with
            `--flip` only).
        seed: Seed of the posterior's noise and of the flips.
        verify: Compare each row with its checksum whenever it is read, so that a bit that flipped on the disk raises
            `ValueError` instead of becoming training data. Shards that are cut off, exchanged or of another output
            are found without it.
        cache_bytes: The most bytes of an address's shards that each process keeps in memory.

    Raises:
        ValueError: In one line, where the folder isn't whole or hasn't what is asked for.
        OSError: In one line, where an address can't be reached.
    """

    def __init__(
        self,
        directory: str | Path | Store,
        *,
        sample: bool = False,
        normalize: Literal["scaling", "channel", "none"] = "scaling",
        random_flip: bool = False,
        seed: int = 0,
        verify: bool = False,
        cache_bytes: int = 1 << 28,
    ) -> None:
        self.store = open_store(directory)
        self.directory: str | Path = self.store.folder or self.store.place()
        self.index = read_index(self.store)
        self.shards = ShardTable.of(self.index, self.store)
        self.verify = verify
        self._plan = plan_digest(self.index)
        self.codes = self._read_codes()
        self._names = tensor_names(mode=self.index["mode"], flip=self.index["flip"])
        self.sample, self.normalize, self.random_flip, self.seed = sample, normalize, random_flip, seed
        if sample and self.index["mode"] != "moments":
            raise ValueError(
                f"{directory} holds mode {self.index['mode']}, which can't be sampled; encode with --mode moments"
            )
        if random_flip and not self.index["flip"]:
            raise ValueError(f"{directory} holds no mirrored latents; encode with --flip")
        self._starts = self.shards.starts
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by the workers that run already
        self._cache = BlockCache(self.store, limit_bytes=cache_bytes)
        self._open: OrderedDict[int, Mapping[str, Rows]] = OrderedDict()
        has_lists = isinstance(self.index["shards"], list)
        self._lines: RowLines | RecordLines = RowLines(self.store)
        if not has_lists:
            self._lines = RecordLines(self.store, shards=self.shards, plan=self._plan)
        self.patch_size = 1 if normalize != "scaling" else self.index["vae"].get("patch_size", 1)
        self.shift, self.scale = self._normalization()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, row: int) -> LatentSample:
        tensors, at = self._locate(row)
        number = int(tensors["sample"][at])
        label = int(tensors["labels"][at]) if "labels" in tensors else NO_LABEL
        flipped = self.random_flip and self._rng(number, "flip").random() < 0.5
        return LatentSample(self._normalized(self.latents(row, flipped=flipped)), label, number)

    def set_epoch(self, epoch: int) -> None:
        """Draw other noise and flips from here on, in workers that run already too."""
        self._epoch.fill_(epoch)

    def stats(self) -> LatentStats:
        """Return mean and standard deviation a channel of the VAE's own latents, before any normalisation.

        They were measured in float64 when the latents were written: of posterior samples where `sample` is set, else
        of what is stored.

        Raises:
            ValueError: The folder holds no rows.
        """
        stats = self.index["stats"]
        if not stats["count"]:
            raise ValueError(f"{self.directory} holds no rows, so its latents have no statistics")
        std = stats["sample_std" if self.sample else "std"]
        return LatentStats(count=stats["count"], mean=float64_tensor(stats["mean"]), std=float64_tensor(std))

    def denormalize(self, latents: Tensor) -> Tensor:
        """Undo the normalisation: latents [..., c, h, w] become what the VAE's decoder takes."""
        return pixel_shuffle(latents / self.scale.to(latents) + self.shift.to(latents), self.patch_size)

    def latents(self, row: int, *, flipped: bool = False) -> Tensor:
        """Return the VAE's own latents of a row, float32 [c, h, w].

        They are the posterior's sample where `sample` is set, else its mean; with `flipped` those of the mirrored
        image.
        """
        tensors, at = self._locate(row)
        suffix = "_flip" if flipped else ""
        if self.codes is not None:
            return look_up(tensors["indices" + suffix][at], self.codes)
        name = "mean" if self.index["mode"] == "moments" else "latents"
        latents = tensors[name + suffix][at].to(torch.float32, copy=True)
        if self.sample:
            noise = self._rng(int(tensors["sample"][at]), "noise").standard_normal(latents.shape, dtype=np.float32)
            latents.addcmul_(tensors["std" + suffix][at].to(torch.float32), torch.from_numpy(noise))
        return latents

    def indices(self, row: int, *, flipped: bool = False) -> Tensor:
        """Return the numbers of a row's codes, int64 [h, w] (folders of mode `indices` only); `codes` has the codes.

        Raises:
            ValueError: The folder holds no numbers of codes.
        """
        if self.codes is None:
            raise ValueError(f"{self.directory} holds mode {self.index['mode']}, not numbers of codes")
        tensors, at = self._locate(row)
        return tensors["indices_flip" if flipped else "indices"][at][0].to(torch.int64)

    def moments(self, row: int) -> dict[str, Tensor]:
        """Return a row's tensors as stored: `mean` and `std`, `latents` or `indices`; and their `_flip` twins."""
        tensors, at = self._locate(row)
        return {name: tensors[name][at] for name in self._names}

    def row(self, row: int) -> dict[str, Any]:
        """Return a row's line of samples.jsonl: its `source`, `label`, and other `columns` such as captions."""
        return self._lines[self._row(row)]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Go through the rows' lines of samples.jsonl in order."""
        yield from self._lines

    def shard_rows(self) -> Iterator[range]:
        """Go through the shards as ranges of rows; all latents of one shard have the same shape."""
        for start, stop in zip(self._starts[:-1], self._starts[1:], strict=True):
            yield range(int(start), int(stop))

    def shape(self, row: int) -> tuple[int, int, int]:
        """Return the shape [c, h, w] of a row's latents, which differs between rows that are of different buckets."""
        c, h, w = self.shards[self._shard(self._row(row))]["shape"]
        return c if self.codes is None else self.codes.shape[1], h, w

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def _read_codes(self) -> Tensor | None:
        if self.index["mode"] != "indices":
            return None
        return read_codebook(self.store, sha256=self.index["files"].get(CODEBOOK, ""))

    def _row(self, row: int) -> int:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} in {self.directory}")
        return row % len(self)

    def _shard(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def _locate(self, row: int) -> tuple[Mapping[str, Rows], int]:
        row = self._row(row)
        shard = self._shard(row)
        if shard not in self._open:
            self._open[shard] = open_shard(
                self.store, entry=self.shards[shard], plan=self._plan, names=self._names, cache=self._cache
            )
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        tensors, at = self._open[shard], row - int(self._starts[shard])
        if self.verify:
            self._verify_row(tensors, at, row=row)
        return tensors, at

    def _verify_row(self, tensors: Mapping[str, Rows], at: int, *, row: int) -> None:
        actual = row_checksums({name: values[at : at + 1] for name, values in tensors.items()})
        if CHECKSUMS not in tensors or int(actual) != int(tensors[CHECKSUMS][at]):
            place = self.store.place(self.shards[self._shard(row)]["file"])
            raise ValueError(f"{place}: row {row} is damaged, its checksum isn't right; {MEND}")

    def _normalized(self, latents: Tensor) -> Tensor:
        if self.normalize == "none":
            return latents
        if self.patch_size > 1:
            latents = pixel_unshuffle(latents, self.patch_size)
        return latents.sub_(self.shift).mul_(self.scale)

    def _rng(self, number: int, stream: str) -> np.random.Generator:
        return sample_rng(number, seed=self.seed, stream=f"latents/{stream}/{int(self._epoch)}")

    def _normalization(self) -> tuple[Tensor, Tensor]:
        """Return shift and scale, each [c, 1, 1] or [1, 1, 1]."""
        if self.normalize == "channel":
            stats = self.stats()
            shift, scale = stats.mean, 1 / stats.std
        elif self.normalize == "scaling":
            vae = self.index["vae"]
            factor = vae["scaling_factor"]
            shift, scale = torch.tensor([vae["shift_factor"] or 0.0]), torch.tensor([factor])
            if vae["latents_mean"] is not None and vae["latents_std"] is not None:
                shift, scale = torch.tensor(vae["latents_mean"]), factor / torch.tensor(vae["latents_std"])
        else:
            shift, scale = torch.zeros(1), torch.ones(1)
        return shift.float()[:, None, None], scale.float()[:, None, None]
