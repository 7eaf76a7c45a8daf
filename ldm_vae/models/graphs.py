"""CUDA graphs: a network's kernels recorded once for a shape, and launched together from then on."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ldm_vae.system.telling import tell
from ldm_vae.system.text import first_line

SWITCH = "LDM_VAE_GRAPHS"
CALLS_BEFORE = 2  # of a shape, which set up what may not be set up while recording
MOST_GRAPHS = 4  # each holds the memory of its activations
MOST_PIXELS = 8 * 512 * 512  # of all images of a call; where there are more, launches are no part of the time

Network: TypeAlias = Callable[[Tensor], Tensor]
Key: TypeAlias = tuple[torch.Size, tuple[int, ...], torch.dtype]


class Recording(NamedTuple):
    """A call that was recorded."""

    source: Tensor
    """Where the call's input has to be copied to."""
    result: Tensor
    """Where a replay leaves the result, until the next one."""
    replay: Callable[[], None]


Recorder: TypeAlias = Callable[[Network, Tensor], Recording]


class CudaRecorder:
    """Records calls on a CUDA device. Recordings share a pool of memory, since none is replayed within another."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, network: Network, source: Tensor) -> Recording:
        """Record the call of a network."""
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads of this process may pin memory or wait for an event meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = network(source)
        return Recording(source, result, graph.replay)


class Graphed:
    """A network without gradients whose calls are recorded, from the third of a shape on, and replayed.

    A recording is compared with the call itself before it is used. Where recording isn't possible, or the results are
    not the same, a line says so and the network is called as before. `LDM_VAE_GRAPHS=off` leaves recordings out.

    Args:
        network: From one tensor [B, C, H, W] to another. The weights may change in place, but nothing else.
        record: Makes a recording.
        pixels: How many pixels of an image one position of the network's input stands for.
    """

    def __init__(self, network: Network, *, record: Recorder, pixels: int = 1) -> None:
        self._network, self._pixels, self._record = network, pixels, record
        self._calls: dict[Key, int] = {}
        self._recordings: dict[Key, Recording] = {}
        self._usable = os.environ.get(SWITCH, "auto").lower() not in ("off", "0", "no", "false")

    def __call__(self, values: Tensor) -> Tensor:
        """Return what the network makes of [B, C, H, W]."""
        key = (values.shape, values.stride(), values.dtype)
        recording = self._recordings.get(key)
        if recording is not None:
            return _replayed(recording, values)
        result = self._network(values)
        if self._usable and len(self._recordings) < MOST_GRAPHS and self._is_small(values):
            self._calls[key] = self._calls.get(key, 0) + 1
            if self._calls[key] == CALLS_BEFORE:
                self._make(key, values, result)
        return result

    def _is_small(self, values: Tensor) -> bool:
        return 0 < len(values) * values[0, 0].numel() * self._pixels <= MOST_PIXELS

    def _make(self, key: Key, values: Tensor, result: Tensor) -> None:
        """Record the call, and keep the recording if it gives the call's result."""
        try:
            recording = self._record(self._network, values.clone())
            replayed = _replayed(recording, values)
            apart = float((replayed.float() - result.float()).norm() / (result.float().norm() + 1e-12))
        except RuntimeError as error:  # torch's own, and the driver's
            self._usable = False
            tell(f"CUDA graphs can't be recorded here ({first_line(error)}); kernels are launched one by one")
            return
        if apart < 1e-3:
            self._recordings[key] = recording
        else:
            self._usable = False
            tell(f"a CUDA graph gives another result here (by {apart:.2g}); kernels are launched one by one")


def _replayed(recording: Recording, values: Tensor) -> Tensor:
    """Return a result of its own: the recording's is overwritten by the next replay."""
    recording.source.copy_(values)
    recording.replay()
    return recording.result.clone()
