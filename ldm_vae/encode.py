"""`ldm-vae encode`: a collection of images to shards of latents, by any number of processes that share a folder."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ldm_vae.config import require
from ldm_vae.data.collection import ImageCollection, open_collection
from ldm_vae.data.decoding import UnreadableImage
from ldm_vae.data.encoding import EncodingImages, ImageBatch, ImageKey, ShardImages, shard_batches, source_stamp
from ldm_vae.data.files import Leases, remove_temporaries
from ldm_vae.data.latent_work import Work, open_output
from ldm_vae.data.shard_writer import EncodedBatch, ShardWriter
from ldm_vae.data.shards import Assembled, Plan, ShardRecord, assemble_index, shard_stem
from ldm_vae.models.autoencoder import load_autoencoder, spatial_factor
from ldm_vae.models.fingerprint import fingerprint, scaling
from ldm_vae.models.inference import InferenceAutoencoder
from ldm_vae.options import EncodeOptions

_POLL_SECONDS = 0.5
_WORKER_TIMEOUT_SECONDS = 600.0
_NAMES_AT_ONCE = 10_000


@dataclass(kw_only=True)
class EncodeSummary:
    """What the output holds, and what this process did of it."""

    output: Path
    num_images: int
    """Of the collection."""
    num_rows: int
    num_skipped: int
    num_shards: int
    num_bytes: int
    """Of all shards."""
    encoded_images: int
    """By this process."""
    encoded_shards: int
    seconds: float

    def __str__(self) -> str:
        size = f"{self.num_bytes / 1e6:,.1f} MB"
        done = f"{self.num_rows:,} latents of {self.num_images:,} images in {self.num_shards:,} shards, {size}"
        skipped = f"; {self.num_skipped:,} skipped, listed in skipped.jsonl" if self.num_skipped else ""
        rate = self.encoded_images / self.seconds if self.seconds > 0 else 0.0
        return (
            f"{self.output}: {done}{skipped}\n"
            f"this process encoded {self.encoded_images:,} images in {self.seconds:,.1f} s, {rate:,.1f} images/s"
        )


def encode(options: EncodeOptions) -> EncodeSummary:
    """Encode a collection, or do what is left of it.

    Returns when the output is whole, whichever processes made it so.

    Raises:
        ValueError: naming the option, for what a user can mend.
    """
    assert options.vae is not None
    assert options.data is not None
    assert options.output is not None
    started = time.monotonic()
    folder = Path(options.output).expanduser()
    autoencoder = load_autoencoder(options.vae, field="--vae")
    factor = spatial_factor(autoencoder)
    require(
        options.resolution % factor == 0,
        f"--resolution is {options.resolution}, which the VAE's factor {factor} does not divide",
    )
    collection = open_collection(options.data, split=options.split, image_column=options.image_column, field="--data")
    encoder = InferenceAutoencoder(autoencoder, mixed_precision=options.mixed_precision, tile=options.tile)
    if options.tile:
        warnings.warn(
            "--tile: tiles are encoded apart and blended, so group norms and attention see a tile instead of the "
            "image; latents differ from those of the whole image, most of all in colour and near the seams",
            stacklevel=2,
        )
    plan = make_plan(options, collection=collection, encoder=encoder)
    run = _Encode(options, folder=folder, plan=plan, collection=collection, encoder=encoder)
    return run(started)


def make_plan(options: EncodeOptions, *, collection: ImageCollection, encoder: InferenceAutoencoder) -> Plan:
    """State what an output with these options is."""
    autoencoder = encoder.autoencoder
    digests = fingerprint(autoencoder)
    preprocessing: dict[str, Any] = {
        "channels": autoencoder.config.in_channels,
        "resolution": options.resolution,
        "crop": "short side to the resolution, centre square",
        "filter": "bicubic, antialiased",
        "range": [-1, 1],
        "precision": "bf16" if encoder.bf16 else "float32",
        "tile": options.tile,
    }
    data: dict[str, Any] = {"num_images": len(collection), "names": _digest_names(collection)}
    data |= {"changes": options.detect_changes, "label_names": collection.label_names}
    return Plan(
        vae={"fingerprint": digests.whole, "encoder": digests.encoder, **scaling(autoencoder)},
        preprocessing=preprocessing,
        mode=options.mode,
        dtype=options.dtype,
        flip=options.flip,
        seed=options.seed if options.mode == "sample" else None,
        shard_size=options.shard_size,
        data=data,
    )


def _digest_names(collection: ImageCollection) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(collection), _NAMES_AT_ONCE):
        for name in collection.names(start, min(start + _NAMES_AT_ONCE, len(collection))):
            digest.update(name.encode(errors="backslashreplace") + b"\0")
    return digest.hexdigest()


class _Encode:
    """One process's part in an encode."""

    def __init__(
        self,
        options: EncodeOptions,
        *,
        folder: Path,
        plan: Plan,
        collection: ImageCollection,
        encoder: InferenceAutoencoder,
    ) -> None:
        self.options, self.folder, self.plan = options, folder, plan
        self.collection, self.encoder = collection, encoder
        config = encoder.autoencoder.config
        side = options.resolution // spatial_factor(encoder.autoencoder)
        self.shape = (config.latent_channels, side, side)
        self.shards = {
            shard_stem(start // options.shard_size): range(start, min(start + options.shard_size, len(collection)))
            for start in range(0, len(collection), options.shard_size)
        }
        self.images = EncodingImages(
            collection,
            channels=config.in_channels,
            resolution=options.resolution,
            latent_shape=self.shape if options.mode == "sample" else None,
            seed=options.seed,
            detect_changes=options.detect_changes,
        )
        self.bar = tqdm(total=len(collection), unit="img", desc="encode", dynamic_ncols=True, disable=None)
        self.encoded_images = self.encoded_shards = self.written_bytes = self.skipped = 0

    def __call__(self, started: float) -> EncodeSummary:
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.enter_context(self.bar)
            leases = stack.enter_context(Leases(self.folder, seconds=self.options.lease_seconds))
            open_output(self.folder, plan=self.plan, overwrite=self.options.overwrite, leases=leases)
            self.work = Work(
                self.folder, plan=self.plan, leases=leases, stems=list(self.shards),
                is_current=self._is_current, on_whole=self._note,
            )  # fmt: skip
            stack.enter_context(self.encoder)
            writer = ShardWriter(
                self.folder,
                plan=self.plan,
                with_labels=self.collection.label_column is not None,
                on_written=self._written,
            )
            self.writer = stack.enter_context(writer)
            totals = None
            while totals is None:
                self._finish_shards()
                totals = self._assemble()
            leases.taken_elsewhere()  # clears the leases of the dead
            remove_temporaries(self.folder, older_than=max(600.0, 10 * self.options.lease_seconds))
        return EncodeSummary(
            output=self.folder,
            num_images=len(self.collection),
            num_rows=totals.num_rows,
            num_skipped=totals.num_skipped,
            num_shards=len(self.shards),
            num_bytes=totals.num_bytes,
            encoded_images=self.encoded_images,
            encoded_shards=self.encoded_shards,
            seconds=time.monotonic() - started,
        )

    def _finish_shards(self) -> None:
        """Encode what can be claimed, and wait for what others have claimed, until every shard is whole."""
        while self.work.left:
            claims = self.work.claims()
            first = next(claims, None)
            if first is None:
                self.bar.set_postfix_str(f"waiting for {len(self.work.left)} shards of other processes")
                time.sleep(_POLL_SECONDS)
                continue
            for batch in self._batches(chain([first], claims)):
                self._encode(batch)
            self.writer.wait()

    def _assemble(self) -> Assembled | None:
        """Write the index; none where a shard vanished meanwhile, because another process replaces the output."""
        try:
            return assemble_index(self.folder, plan=self.plan, stems=list(self.shards))
        except FileNotFoundError:
            self.work.look_again()
            return None

    def _batches(self, stems: Iterator[str]) -> Iterator[ImageBatch]:
        return shard_batches(
            (self._shard_images(stem) for stem in stems),
            self.images,
            batch_size=self.options.batch_size,
            num_workers=self.options.num_workers,
            timeout_seconds=_WORKER_TIMEOUT_SECONDS,
            pin_memory=self.encoder.device.type == "cuda",
        )

    def _shard_images(self, stem: str) -> ShardImages:
        return ShardImages(stem=stem, keys=[ImageKey(sample=i, image=i) for i in self.shards[stem]])

    def _encode(self, batch: ImageBatch) -> None:
        """Encode a batch and hand it to the writer, without waiting for the device."""
        for row in batch.rows:
            if row.reason is not None and self.options.strict:
                raise UnreadableImage(row.source, row.reason)
        tensors = {} if batch.pixels is None else self._latents(batch.pixels, batch.noise)
        ready = None
        if self.encoder.device.type == "cuda":
            tensors = {name: values.to("cpu", non_blocking=True) for name, values in tensors.items()}
            ready = torch.cuda.Event()
            ready.record()
        self.writer.add(
            EncodedBatch(
                stem=batch.stem, rows=batch.rows, tensors=tensors, shape=self.shape, last=batch.last, ready=ready
            )
        )
        self.encoded_images += len(batch.rows)
        self._advance(len(batch.rows), skipped=sum(row.reason is not None for row in batch.rows))

    def _latents(self, pixels: Tensor, noise: Tensor | None) -> dict[str, Tensor]:
        images = self.encoder.to_images(pixels)
        tensors = self._stored(images, noise)
        if self.options.flip:
            flipped = self._stored(images.flip(-1), noise)
            tensors |= {f"{name}_flip": values for name, values in flipped.items()}
        return tensors

    def _stored(self, images: Tensor, noise: Tensor | None) -> dict[str, Tensor]:
        try:
            mean, std = self.encoder.encode(images)
        except torch.OutOfMemoryError:
            raise ValueError(
                f"--batch_size {self.options.batch_size} of {self.options.resolution} pixels a side doesn't fit in "
                f"the device's memory; take fewer, or --tile true"
            ) from None
        if self.options.mode == "moments":
            return {"mean": mean, "std": std}
        if noise is not None:
            mean = mean + std * noise.to(mean.device, non_blocking=True)
        return {"latents": mean}

    def _is_current(self, record: ShardRecord) -> bool:
        """Whether a whole shard was made from the sources as they are now."""
        if self.options.detect_changes == "off":
            return True
        return all(
            row.stamp == source_stamp(self.collection, row.sample, detect_changes=self.options.detect_changes)
            for row in record.rows
        )

    def _note(self, record: ShardRecord) -> None:
        """Count a shard that was whole before, or that another process wrote; it doesn't count in the bar's rate."""
        if not self.bar.disable:
            self.bar.initial += len(record.rows)
        self._advance(len(record.rows), skipped=len(record.rows) - record.count)

    def _written(self, record: ShardRecord) -> None:
        self.work.written(record)
        self.encoded_shards += 1
        self.written_bytes += record.size

    def _advance(self, images: int, *, skipped: int) -> None:
        self.skipped += skipped
        self.bar.set_postfix_str(f"{self.written_bytes / 1e6:.1f} MB, {self.skipped} skipped", refresh=False)
        self.bar.update(images)
