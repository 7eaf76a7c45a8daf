"""An evaluation on a Ray cluster: actors measure batches, and the driver adds up what one process would have added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ldm_vae.config.names import MixedPrecision
from ldm_vae.evaluation.features import MeasuringNetworks
from ldm_vae.evaluation.measure import Comparison, Measuring
from ldm_vae.evaluation.pictures import PictureLog
from ldm_vae.evaluation.reading import ImagePass
from ldm_vae.images.evaluation import evaluation_batch
from ldm_vae.models.exact import enable_exact_tiling
from ldm_vae.models.families.family import Family
from ldm_vae.models.inference import local_device
from ldm_vae.models.precision import exact_float32, use_bf16
from ldm_vae.system.progress import progress
from ldm_vae.system.ray_actors import RayActor, RayActors, in_tasks
from ldm_vae.system.ray_cluster import on_device

_BATCHES_A_PIECE = 8


@dataclass(frozen=True, kw_only=True)
class Devices:
    """What a cluster measures on."""

    kind: str
    """Type of its devices: `cuda` or `cpu`."""
    bf16: bool
    """Whether convolutions run in bf16."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What an actor found in some consecutive batches."""

    number: int
    """Which of the pieces that the images are cut into."""
    measuring: Measuring
    """Readers, log and grid; without networks and autoencoders."""
    states: list[list[dict[str, Tensor]]]
    """For each batch and autoencoder the sums of that batch alone."""


def find_devices(ray: Any, mixed_precision: MixedPrecision) -> Devices:
    """Return what the cluster's actors will run on, and in which precision."""
    return on_device(ray, _devices, mixed_precision)


def _devices(mixed_precision: MixedPrecision) -> Devices:
    device = local_device()
    return Devices(kind=device.type, bf16=use_bf16(mixed_precision, device=device))


class EvaluateActor(RayActor):
    """Holds autoencoders and networks on a device and measures batches."""

    def set_up(self, *arguments: Any) -> None:
        """Take autoencoders, networks, an empty log, the bound on memory, and further arguments of `Measuring`."""
        families, networks, log, memory_gib, measuring = arguments
        exact_float32()
        device = local_device()
        self._families, self._networks = families, networks.to(device)
        for family in families:
            family.to(device, memory_format=torch.channels_last)
            if memory_gib is not None:
                enable_exact_tiling(family.model, memory_gib=memory_gib)
        self._log, self._arguments = log, measuring

    def measure(
        self, arguments: list[Any], number: int, batches: list[Sequence[int]], images: ImagePass, samples: list[Any]
    ) -> Measured:
        """Measure batches of images, given by their numbers.

        Args:
            arguments: See `ready`.
            number: Of the piece.
            batches: The batches.
            images: The pass over all images, without the images.
            samples: Ray's reference to the images, in a list so that Ray doesn't resolve it here.
        """
        import ray

        self.ready(arguments)
        images = replace(images, dataset=ray.get(samples[0]))
        measuring = Measuring(
            self._families, images, networks=self._networks, log=self._log.empty(), **self._arguments
        )
        states = []
        for batch in in_tasks(ray, evaluation_batch, samples, batches, ahead=self.batches_ahead):
            measuring.add(batch)
            states.append(measuring.take_sums())
        return Measured(number=number, measuring=measuring.without_networks(), states=states)


def measure_on_ray(
    ray: Any,
    families: Sequence[Family],
    images: ImagePass,
    *,
    networks: MeasuringNetworks,
    log: PictureLog,
    memory_gib: float | None,
    **arguments: Any,
) -> Comparison:
    """Return what `measure_reconstructions` returns, measured by a cluster.

    The sums of each batch are added in the order of the batches, as one process adds them, so that the figures agree
    to the last digit where devices give the same values.

    Args:
        ray: The package, connected.
        families: Autoencoders on the CPU, sent to the actors.
        images: The pass over the images; where these are files, each node has to see them under their paths.
        networks: What reconstructions are compared by, on the CPU.
        log: Takes figures and pictures of single images.
        memory_gib: The most memory of a device that an autoencoder takes; None: no bound.
        arguments: Further ones of `Measuring`.

    Raises:
        ValueError: None of the images can be read, or, where the pass is strict, one of them can't.
    """
    whole = Measuring(families, images, networks=networks, log=log, **arguments)
    samples, empty = [ray.put(images.dataset)], replace(images, dataset=None)  # type: ignore[arg-type]
    given = (list(families), networks, log.empty(), memory_gib, arguments)
    actors = RayActors(ray, EvaluateActor, arguments=given)
    batches = images.cut()
    pieces = [batches[start : start + _BATCHES_A_PIECE] for start in range(0, len(batches), _BATCHES_A_PIECE)]

    def call(actor: Any, piece: tuple[int, list[Sequence[int]]]) -> Any:
        return actor.measure.remote(actors.arguments, *piece, empty, samples)

    early: dict[int, list[list[dict[str, Tensor]]]] = {}
    following = 0
    with progress(len(images.indices), what="reconstructions", unit=images.dataset.noun, leave=False) as bar:
        for measured in actors.each(call, enumerate(pieces)):
            whole.take(measured.measuring)
            early[measured.number] = measured.states
            bar.update(sum(map(len, pieces[measured.number])))
            while following in early:
                for sums in early.pop(following):
                    whole.add_sums(sums)
                following += 1
    return whole.comparison()
