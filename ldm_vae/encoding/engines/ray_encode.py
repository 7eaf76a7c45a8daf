"""Shards on a Ray cluster: actors hold the autoencoder, tasks decode for them, and the driver says who does which.

The driver claims shards as a local process does, so that several engines may work on one output. An actor writes its
shard whole or not at all, and the bytes depend neither on the actor nor on how often Ray tried: what was lost with a
node is done again.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ldm_vae.config.commands.encode import EncodeOptions
from ldm_vae.encoding.buckets import ShardImages
from ldm_vae.encoding.output import output_store
from ldm_vae.encoding.preprocessing import EncodingImages, ImageBatch, decoded_batch
from ldm_vae.encoding.shard_encoder import ShardEncoder
from ldm_vae.encoding.work import ShardWork
from ldm_vae.encoding.writer import ShardWriter
from ldm_vae.latents.shards import Plan, ShardRecord
from ldm_vae.models.families.family import Family
from ldm_vae.models.inference import InferenceAutoencoder, local_device
from ldm_vae.models.precision import use_bf16
from ldm_vae.system.places import open_store
from ldm_vae.system.ray_actors import RayActor, RayActors, in_tasks
from ldm_vae.system.ray_cluster import on_device
from ldm_vae.system.telling import counted

_POLL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class EncodedShard:
    """What an actor tells of a shard that is whole."""

    record: ShardRecord
    node: str
    """Where it was encoded: host and the beginning of Ray's id of the node."""
    seconds: float
    """Time from the call to the whole shard."""
    num_by_device: int
    """Images whose JPEG files the actor's device decoded."""


@dataclass(kw_only=True)
class NodeShare:
    """What a node did."""

    shards: int = 0
    images: int = 0
    actor_seconds: float = 0.0


def remote_precision(ray: Any, options: EncodeOptions) -> bool:
    """Return whether the cluster's devices compute in bf16, where the options leave that to the hardware."""
    if options.mixed_precision != "auto":
        return options.mixed_precision == "bf16"
    return on_device(ray, _precision, options)


def remote_device_type(ray: Any) -> str:
    """Return the kind of the cluster's devices, such as cuda."""
    return on_device(ray, _device_type)


def _device_type() -> str:
    return local_device().type


def _precision(options: EncodeOptions) -> bool:
    return use_bf16(options.mixed_precision, device=local_device())


class EncodeActor(RayActor):
    """Holds an autoencoder on a device and encodes shard after shard."""

    def set_up(self, *arguments: Any) -> None:
        """Take options, plan and autoencoder."""
        options, plan, family = arguments
        bf16 = plan.preprocessing["precision"] == "bf16"
        encoder = InferenceAutoencoder(family, bf16=bf16, memory_gib=options.memory_gib)
        codes = family.bottleneck.codes if plan.mode == "indices" else None
        self._codes = None if codes is None else codes.cpu()
        self._options, self._plan = options, plan
        self._encoder = ShardEncoder(options, mode=plan.mode, encoder=encoder)
        self._store = output_store(open_store(options.output), plan=plan)
        self._device = threading.Lock()

    def encode(self, arguments: list[Any], shard: ShardImages, images: list[Any]) -> EncodedShard:
        """Encode a shard and write it; returns when it is whole.

        Args:
            arguments: See `ready`.
            shard: Its images.
            images: Ray's reference to the `EncodingImages`, in a list so that Ray doesn't resolve it here.
        """
        import ray

        self.ready(arguments)
        started, records, num_by_device = time.monotonic(), list[ShardRecord](), 0
        with ShardWriter(self._store, plan=self._plan, codes=self._codes, on_written=records.append) as writer:
            for batch in _decoded(ray, shard, images, options=self._options, ahead=self.batches_ahead):
                with self._device:
                    encoded = self._encoder.encode(batch)
                writer.add(encoded)
                num_by_device += encoded.num_by_device
        node = f"{socket.gethostname()}/{ray.get_runtime_context().get_node_id()[:8]}"
        seconds = time.monotonic() - started
        return EncodedShard(record=records[0], node=node, seconds=seconds, num_by_device=num_by_device)


def _decoded(
    ray: Any, shard: ShardImages, images: list[Any], *, options: EncodeOptions, ahead: int
) -> Iterator[ImageBatch]:
    """Yield a shard's batches in order, decoded by tasks anywhere in the cluster, some of them ahead."""
    starts = range(0, len(shard.keys), options.batch_size)
    batches = [shard.keys[start : start + options.batch_size] for start in starts]
    decoded = in_tasks(ray, decoded_batch, images, batches, ahead=ahead)
    for number, batch in enumerate(decoded, 1):
        batch.stem, batch.size, batch.last = shard.stem, shard.size, number == len(batches)
        yield batch


@dataclass(kw_only=True)
class RayEngine:
    """The driver of an encode on a cluster.

    Args:
        ray: The package, connected.
        options: What the encode was asked for.
        plan: What the output is.
        family: The autoencoder, on the CPU; it is sent to the actors, so no node needs its files.
        images: Reads the images; where they are files, each node has to see them under their paths.
        work: Which shards are left.
        on_encoded: Called with each shard that was encoded.
    """

    ray: Any
    options: EncodeOptions
    plan: Plan
    family: Family
    images: EncodingImages
    work: ShardWork
    on_encoded: Callable[[EncodedShard], None]
    nodes: dict[str, NodeShare] = field(default_factory=dict)
    """What each node did so far."""

    def __post_init__(self) -> None:
        self._images_put = self.ray.put(self.images)
        self._actors = RayActors(self.ray, EncodeActor, arguments=(self.options, self.plan, self.family))

    def finish_shards(self, *, waiting: Callable[[], object]) -> None:
        """Have all shards that are left encoded; waits for those that other drivers or processes have claimed.

        Args:
            waiting: Called where only shards of others are left.
        """
        while self.work.num_left:
            is_first = True
            for encoded in self._actors.each(self._call, self.work.claims()):
                is_first = False
                self._take(encoded)
            if is_first:
                waiting()
                time.sleep(_POLL_SECONDS)

    def _call(self, actor: Any, shard: ShardImages) -> Any:
        return actor.encode.remote(self._actors.arguments, shard, [self._images_put])

    def _take(self, encoded: EncodedShard) -> None:
        self.work.written(encoded.record)
        share = self.nodes.setdefault(encoded.node, NodeShare())
        share.shards += 1
        share.images += len(encoded.record.rows)
        share.actor_seconds += encoded.seconds
        self.on_encoded(encoded)


def told_nodes(nodes: dict[str, NodeShare], *, seconds: float, noun: str) -> list[str]:
    """Return a line for each node, with its throughput."""
    rates = {node: share.images / max(seconds, 1e-9) for node, share in nodes.items()}
    return [
        f"{node} encoded {counted(share.images, noun)} in {counted(share.shards, 'shard')}, "
        f"{rates[node]:,.1f} {noun}s/s"
        for node, share in sorted(nodes.items())
    ]
