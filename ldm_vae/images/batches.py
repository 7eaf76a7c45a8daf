"""A process's micro-batches from any step of the run on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ldm_vae.images.streaming import LocalSamples, StreamingImages
from ldm_vae.images.training import TrainingBatch, TrainingSample, TrainingSamples
from ldm_vae.system.workers import load


def training_batches(
    dataset: TrainingSamples | StreamingImages,
    *,
    start_step: int,
    batch_size: int,
    micro_batch_size: int,
    process_index: int = 0,
    num_processes: int = 1,
    num_workers: int = 0,
    timeout_seconds: float = 600,
    pin_memory: bool = False,
) -> Iterator[TrainingBatch]:
    """Yield this process's micro-batches from step `start_step` on, without end.

    Step t has the images k in [t·B, (t + 1)·B) for a global batch of B; with P processes and micro-batches of b,
    process r's i-th micro-batch of the step has the b images from t·B + (i·P + r)·b on. From a stream each process
    takes its own next b images, and step t starts at its t·B/P-th.

    Args:
        dataset: The run's images.
        start_step: First step.
        batch_size: Images a step over all processes, B.
        micro_batch_size: Images a micro-batch, b; P·b divides B.
        process_index: This process, r.
        num_processes: P.
        num_workers: Processes that prepare the batches; 0: this one does. A stream is read by one, in which so many
            threads decode.
        timeout_seconds: Longest wait for a worker.
        pin_memory: Put the batches into page-locked memory, for faster copies to CUDA devices.

    Raises:
        DataWorkerError: A worker died, or gave nothing for `timeout_seconds`.
        UnreadableImage, ValueError: See `TrainingSamples` and `StreamingImages.samples`.
    """
    stride = num_processes * micro_batch_size
    assert batch_size % stride == 0
    if isinstance(dataset, StreamingImages):
        samples = LocalSamples(
            dataset,
            start=start_step * batch_size // num_processes,
            process_index=process_index,
            num_processes=num_processes,
            num_threads=num_workers,
        )
        return load(
            samples,
            collate=collate_training,
            batch_size=micro_batch_size,
            num_workers=min(num_workers, 1),
            timeout_seconds=timeout_seconds,
            pin_memory=pin_memory,
        )
    sampler = _MicroBatches(start_step * batch_size + process_index * micro_batch_size, stride, micro_batch_size)
    return load(
        dataset,
        collate=collate_training,
        batch_sampler=sampler,
        num_workers=num_workers,
        timeout_seconds=timeout_seconds,
        pin_memory=pin_memory,
    )


class _MicroBatches:
    """The numbers of the images of each micro-batch: `size` from `start` on, then `stride` further, without end."""

    def __init__(self, start: int, stride: int, size: int) -> None:
        self._start, self._stride, self._size = start, stride, size

    def __iter__(self) -> Iterator[range]:
        start = self._start
        while True:
            yield range(start, start + self._size)
            start += self._stride


def collate_training(samples: list[TrainingSample]) -> TrainingBatch:
    """Stack samples into a micro-batch; all of them are of one update."""
    draws: dict[str, Tensor | float] = dict(samples[0].step_draws)
    assert all(sample.step_draws == draws for sample in samples)
    draws |= {name: torch.stack([sample.draws[name] for sample in samples]) for name in samples[0].draws}
    return TrainingBatch(
        images=torch.stack([sample.image for sample in samples]).contiguous(memory_format=torch.channels_last),
        noise=torch.stack([sample.noise for sample in samples]),
        skipped=[skipped for sample in samples for skipped in sample.skipped],
        draws=draws,
        stored={name: torch.stack([sample.stored[name] for sample in samples]) for name in samples[0].stored},
    )
