"""`ldm-vae encode`: images to shards of latents, by any number of processes that share a folder or a store."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, TypeAlias

from ldm_vae.audio.collection import SoundCollection, open_sounds
from ldm_vae.config.commands.encode import EncodeOptions
from ldm_vae.encoding.buckets import Numbering, bucket_groups, read_headers, repeated
from ldm_vae.encoding.device_jpegs import require_cuda
from ldm_vae.encoding.engines.ray_encode import (
    EncodedShard,
    NodeShare,
    RayEngine,
    remote_device_type,
    remote_precision,
    told_nodes,
)
from ldm_vae.encoding.output import OVERWRITE, open_output, output_store, shown, take_back_damaged
from ldm_vae.encoding.plan import bucket_choice, check_sizes, make_plan, make_preprocessing, square_size
from ldm_vae.encoding.preprocessing import WORKER_TIMEOUT_SECONDS, encoding_images
from ldm_vae.encoding.shard_encoder import ShardEncoder
from ldm_vae.encoding.stream_work import StreamShardWork
from ldm_vae.encoding.summary import EncodeSummary
from ldm_vae.encoding.work import PendingShards, ShardWork
from ldm_vae.encoding.writer import ShardWriter
from ldm_vae.images.collection import ImageCollection, open_collection
from ldm_vae.images.streaming import ImageStream, open_stream
from ldm_vae.images.transforms import Size
from ldm_vae.latents.codebook import write_codebook
from ldm_vae.latents.index import IndexTotals, read_index_totals, write_index
from ldm_vae.latents.layouts.shard_layouts import shard_layout
from ldm_vae.latents.shard_table import MANY_SHARDS
from ldm_vae.latents.shards import SKIPPED, Plan, Row, ShardRecord
from ldm_vae.latents.summaries import ShardSummary
from ldm_vae.models.families.family import Family
from ldm_vae.models.inference import InferenceAutoencoder, local_device
from ldm_vae.models.load import load_vae
from ldm_vae.models.precision import use_bf16
from ldm_vae.system.cores import count_workers
from ldm_vae.system.files import remove_temporaries
from ldm_vae.system.leases import Leases
from ldm_vae.system.output_kinds import LATENTS
from ldm_vae.system.output_stores import output_at
from ldm_vae.system.places import open_store
from ldm_vae.system.progress import progress
from ldm_vae.system.ray_cluster import ray_cluster

Images: TypeAlias = ImageCollection | ImageStream | SoundCollection
"""What can be encoded."""

_POLL_SECONDS = 0.5


def encode(options: EncodeOptions) -> EncodeSummary:
    """Encode a collection, or do what is left of it.

    Returns when the output is whole, whichever processes made it so.

    Raises:
        ValueError: In one line, naming the option, for what a user can mend.
    """
    output_at(options.output, kind=LATENTS).check_writable()
    loaded = load_vae(options.vae, **options.vae_arguments)
    family = loaded.family
    check_sizes(options, family=family)
    options.check_channels(family.in_channels)
    images = _open_images(options)
    with ExitStack() as stack:
        ray = stack.enter_context(ray_cluster(options.ray.address)) if options.engine == "ray" else None
        if ray is not None:
            bf16 = remote_precision(ray, options)
        else:
            bf16 = use_bf16(options.mixed_precision, device=local_device())
        if options.jpeg_decoder == "nvjpeg":
            device_type = local_device().type if ray is None else remote_device_type(ray)
            require_cuda(device_type, asked="<jpeg_decoder> is nvjpeg")
        plan = make_plan(options, images=images, vae=loaded, bf16=bf16)
        return _Encode(options, plan=plan, images=images, family=family, ray=ray).run()


def _open_images(options: EncodeOptions) -> Images:
    """Open what is to be encoded."""
    if options.mel_frames is not None:
        return open_sounds(options.data, split=options.split, rules=options)
    open_images = open_stream if options.streaming else open_collection
    return open_images(options.data, split=options.split, image_column=options.image_column, rules=options)


class _Encode:
    """One process's part in an encode."""

    def __init__(
        self,
        options: EncodeOptions,
        *,
        plan: Plan,
        images: Images,
        family: Family,
        ray: Any,
    ) -> None:
        self.options, self.plan, self.images, self.family, self.ray = options, plan, images, family, ray
        self.store = output_store(open_store(options.output), plan=plan)
        codes = family.bottleneck.codes if plan.mode == "indices" else None
        self.codes = None if codes is None else codes.cpu()
        self.layout = shard_layout(plan, codes=self.codes)
        total = None if isinstance(images, ImageStream) else len(images) * options.crops
        self.bar = progress(total, what="encode", unit=images.noun)
        self.encoded_images = self.encoded_shards = self.written_bytes = self.skipped = self.num_by_device = 0
        self.checked_shards = self.damaged_shards = 0
        self.nodes: dict[str, NodeShare] = {}

    def run(self) -> EncodeSummary:
        started = time.monotonic()
        if self.store.folder is not None:
            self.store.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.enter_context(self.bar)
            leases = stack.enter_context(Leases(self.store, seconds=self.options.lease_seconds))
            open_output(self.store, plan=self.plan, overwrite=self.options.overwrite, leases=leases)
            if self.codes is not None:
                write_codebook(self.store, self.codes)
            if self.options.check_shards:
                take_back_damaged(self.store, plan=self.plan, leases=leases, on_shard=self._checked)
            self.work = self._work(leases)
            totals = None if self.work.num_left else read_index_totals(self.store, plan=self.plan)
            while totals is None:
                if self.ray is not None:
                    self._finish_on_cluster()
                else:
                    self._finish_shards()
                totals = self._write_index()
            leases.clear(but_for=OVERWRITE)  # those of the dead, too
            if self.store.folder is not None:
                remove_temporaries(self.store.folder, older_than=max(600.0, 10 * self.options.lease_seconds))
        return EncodeSummary(
            output=shown(self.store),
            num_images=(totals.num_rows + totals.num_skipped) // self.options.crops,
            crops=self.options.crops,
            num_rows=totals.num_rows,
            num_skipped=totals.num_skipped,
            num_shards=len(self.work.stems),
            num_bytes=totals.num_bytes,
            encoded_images=self.encoded_images,
            encoded_shards=self.encoded_shards,
            damaged_shards=self.damaged_shards,
            seconds=time.monotonic() - started,
            skipped_list=self.store.called(SKIPPED) if len(self.work.stems) < MANY_SHARDS else "the shards' records",
            num_by_device=None if self.options.jpeg_decoder == "pillow" else self.num_by_device,
            noun=self.images.noun,
            nodes=told_nodes(self.nodes, seconds=time.monotonic() - started, noun=self.images.noun),
        )

    def _work(self, leases: Leases) -> PendingShards:
        """Find what is left to do."""
        options = self.options
        crops = options.crops
        preprocessing = make_preprocessing(
            self.family,
            mode=self.plan.mode,
            seed=options.seed,
            crops=crops,
            leave_jpegs=options.jpeg_decoder != "pillow",
        )
        square = square_size(options)
        if isinstance(self.images, ImageStream):
            return StreamShardWork(
                self.store,
                plan=self.plan,
                leases=leases,
                stream=self.images,
                preprocessing=preprocessing,
                size=square,
                on_whole=self._note,
            )
        groups: Sequence[tuple[Size, Sequence[int]]] = [(square, repeated(len(self.images), times=crops))]
        if options.buckets:
            assert isinstance(self.images, ImageCollection), "options refuse buckets of sounds"
            headers = read_headers(
                self.store,
                self.images,
                channels=self.family.in_channels,
                leases=leases,
                num_workers=count_workers(options.num_workers),
                timeout_seconds=WORKER_TIMEOUT_SECONDS,
            )
            groups = bucket_groups(headers, choose=bucket_choice(options), default=square)
        return ShardWork(
            self.store,
            plan=self.plan,
            leases=leases,
            numbering=Numbering(groups, shard_size=options.shard_size),
            images=encoding_images(self.images, preprocessing=preprocessing, detect_changes=options.detect_changes),
            detect_changes=options.detect_changes,
            on_whole=self._note,
        )

    def _finish_shards(self) -> None:
        """Encode what can be claimed, and wait for what others have claimed, until every shard is whole."""
        if not self.work.num_left:
            return
        bf16 = self.plan.preprocessing["precision"] == "bf16"
        encoder = InferenceAutoencoder(self.family, bf16=bf16, memory_gib=self.options.memory_gib)
        shards = ShardEncoder(self.options, mode=self.plan.mode, encoder=encoder)
        with ShardWriter(self.store, plan=self.plan, codes=self.codes, on_written=self._written) as writer:
            while self.work.num_left:
                claimed = False
                for batch in self.work.batches(
                    batch_size=self.options.batch_size,
                    num_workers=count_workers(self.options.num_workers),
                    pin_memory=encoder.device.type == "cuda",
                ):
                    claimed = True
                    encoded = shards.encode(batch)
                    writer.add(encoded)
                    self._count(encoded.rows, num_by_device=encoded.num_by_device)
                writer.wait()
                if not claimed:
                    self._wait()
                    time.sleep(_POLL_SECONDS)

    def _finish_on_cluster(self) -> None:
        """Have what can be claimed encoded by a cluster, and wait for what others have claimed."""
        assert isinstance(self.work, ShardWork)

        def on_encoded(encoded: EncodedShard) -> None:
            self.encoded_shards += 1
            self.written_bytes += encoded.record.size
            self._count(encoded.record.rows, num_by_device=encoded.num_by_device)

        engine = RayEngine(
            ray=self.ray, options=self.options, plan=self.plan, family=self.family, images=self.work.images,
            work=self.work, on_encoded=on_encoded, nodes=self.nodes,
        )  # fmt: skip
        engine.finish_shards(waiting=self._wait)

    def _wait(self) -> None:
        self.bar.set_postfix_str(f"waiting for {self.work.num_left} shards of other processes")

    def _write_index(self) -> IndexTotals | None:
        """Write the index; none where a shard vanished meanwhile, because another process replaces the output."""
        try:
            further = None if self.layout is None else self.layout.lists()
            return write_index(self.store, plan=self.plan, stems=self.work.stems, further=further)
        except FileNotFoundError:
            self.work.find_vanished()
            return None

    def _count(self, rows: list[Row], *, num_by_device: int) -> None:
        """Count images that were encoded for this process."""
        self.encoded_images += len(rows)
        self.num_by_device += num_by_device
        self._advance(len(rows), skipped=sum(row.reason is not None for row in rows))

    def _checked(self, damaged: bool) -> None:
        """Count a shard that was there already and was compared with its digest."""
        self.checked_shards += 1
        self.damaged_shards += damaged
        self.bar.set_postfix_str(f"{self.checked_shards} shards checked, {self.damaged_shards} damaged", refresh=True)

    def _note(self, record: ShardRecord | ShardSummary) -> None:
        """Count a shard that was whole before, or that another process wrote; it doesn't count in the bar's rate."""
        if not self.bar.disable:
            self.bar.initial += record.num_images
        self._advance(record.num_images, skipped=record.num_images - record.count)

    def _written(self, record: ShardRecord) -> None:
        self.work.written(record)
        self.encoded_shards += 1
        self.written_bytes += record.size

    def _advance(self, images: int, *, skipped: int) -> None:
        self.skipped += skipped
        self.bar.set_postfix_str(f"{self.written_bytes / 1e6:.1f} MB, {self.skipped} skipped", refresh=False)
        self.bar.update(images)
