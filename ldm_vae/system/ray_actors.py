"""Pieces of work on a Ray cluster: actors that hold a device each, and tasks on the CPUs that prepare for them.

What is lost with a node is done again by Ray, so a piece of work must give the same however often it is tried.
"""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from ldm_vae.system.cores import usable_cores
from ldm_vae.system.ray_cluster import shares

J = TypeVar("J")

PIECES_AT_ONCE = 2
"""Pieces that an actor works on: while one is on the device the next is prepared."""
_POLL_SECONDS = 0.5
_LOOK_SECONDS = 10.0


@dataclass(kw_only=True, eq=False)
class _Actor:
    handle: Any
    running: list[int] = field(default_factory=list)
    """Numbers of the pieces that it works on."""


class RayActor(ABC):
    """What runs in an actor: it sets itself up at its first call, and again when Ray has started it anew.

    Args:
        batches_ahead: Batches that it has prepared, or asked for, beside the one that it works on.
    """

    def __init__(self, batches_ahead: int) -> None:
        self.batches_ahead = batches_ahead
        self._is_ready = False
        self._setting_up = threading.Lock()

    def ready(self, arguments: list[Any]) -> None:
        """Set up what is needed, unless it is; each method that does work calls this first.

        Ray would let an actor that asks for no CPUs compute with one thread, where a local process takes all cores.

        Args:
            arguments: `RayActors.arguments`.
        """
        import ray

        with self._setting_up:
            if not self._is_ready:
                given, threads = ray.get(arguments[0])
                torch.set_num_threads(threads or usable_cores())
                self.set_up(*given)
                self._is_ready = True

    @abstractmethod
    def set_up(self, *arguments: Any) -> None:
        """Take what `RayActors` was given for all actors."""


class RayActors:
    """Actors on all GPUs of a cluster, or on all nodes where there are none; nodes that join get theirs.

    Ray starts actors anew that are lost. Where the cluster has become smaller, an actor waits for a GPU that may never
    come back; what it has is then done by another too, once there is nothing else to do, and what comes first counts.

    Args:
        ray: The package, connected.
        kind: The actors' class.
        arguments: What every actor is set up with; they are sent to each node once.
    """

    def __init__(self, ray: Any, kind: type[RayActor], *, arguments: Sequence[Any]) -> None:
        self._ray, self._kind = ray, kind
        threads = os.environ.get("OMP_NUM_THREADS")  # what a local process would heed
        # Calls bring them, since what a constructor is given may be lost where Ray starts an actor anew; in a list, so
        # that Ray doesn't resolve the reference.
        self.arguments = [ray.put((tuple(arguments), int(threads) if threads and threads.isdecimal() else None))]
        self._actors: list[_Actor] = []
        self._running: dict[Any, tuple[_Actor, int]] = {}
        self._looked = -_LOOK_SECONDS
        self._gpus: float | None = None
        self._has_shrunk = False

    def each(self, call: Callable[[Any, J], Any], pieces: Iterable[J]) -> Iterator[Any]:
        """Yield what the actors return, as it comes, once for each piece.

        Args:
            call: Calls a method of an actor's handle with a piece of work, and returns Ray's reference.
            pieces: The work; the next piece is taken when an actor has room for it.
        """
        left, unfinished = enumerate(pieces), dict[int, J]()
        while self._fill(call, left, unfinished) or unfinished:
            done, _ = self._ray.wait(list(self._running), timeout=_POLL_SECONDS)
            for reference in done:
                actor, number = self._running.pop(reference)
                actor.running.remove(number)
                if number in unfinished:
                    del unfinished[number]
                    yield self._ray.get(reference)
        for actor in [actor for actor in self._actors if actor.running]:
            self._give_up(actor)

    def _fill(self, call: Callable[[Any, J], Any], left: Iterator[tuple[int, J]], unfinished: dict[int, J]) -> bool:
        """Give each actor as many pieces as it takes; whether there was one."""
        self._look_for_actors()
        filled = False
        for _ in range(PIECES_AT_ONCE):
            for actor in self._actors:
                if len(actor.running) == PIECES_AT_ONCE:
                    continue
                if following := next(left, None) or self._waiting_elsewhere(actor, unfinished):
                    number, piece = following
                    self._running[call(actor.handle, piece)] = actor, number
                    actor.running.append(number)
                    unfinished[number] = piece
                    filled = True
        return filled

    def _waiting_elsewhere(self, actor: _Actor, unfinished: dict[int, J]) -> tuple[int, J] | None:
        """Return a piece that one other actor has, which may be one that waits for a GPU."""
        if not self._has_shrunk:
            return None
        counts = Counter(number for _, number in self._running.values())
        return next(((n, piece) for n, piece in unfinished.items() if counts[n] == 1 and n not in actor.running), None)

    def _give_up(self, actor: _Actor) -> None:
        """End an actor that has only what another has done."""
        self._ray.kill(actor.handle)
        self._actors.remove(actor)
        self._running = {reference: held for reference, held in self._running.items() if held[0] is not actor}

    def _look_for_actors(self) -> None:
        """Start the actors that the cluster has room for; it may have grown."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        share = shares(self._ray)
        if self._gpus is None:
            self._gpus = share.gpus
        room = share.num_actors if share.gpus == self._gpus else 0  # all of a kind: devices don't give the same bits
        kind = self._ray.remote(self._kind).options(
            num_cpus=0,
            num_gpus=self._gpus,
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=PIECES_AT_ONCE,
            scheduling_strategy="SPREAD",
        )
        while len(self._actors) < room:
            self._actors.append(_Actor(handle=kind.remote(share.batches_ahead)))
        self._has_shrunk = len(self._actors) > room


def in_tasks(
    ray: Any, function: Callable[[Any, J], Any], shared: list[Any], pieces: Iterable[J], *, ahead: int
) -> Iterator[Any]:
    """Yield `function(shared, piece)` in order, computed by tasks anywhere in the cluster, some of them ahead.

    Args:
        ray: The package, connected.
        function: A function of a module.
        shared: Ray's reference to what all pieces need, in a list so that Ray doesn't resolve it here.
        pieces: The work.
        ahead: Tasks that are asked for at once.
    """
    task = ray.remote(_call).options(num_cpus=1, max_retries=-1)
    left, asked = iter(pieces), deque[Any]()
    for piece in left:
        asked.append(task.remote(function, shared, piece))
        if len(asked) >= ahead:
            yield ray.get(asked.popleft())
    while asked:
        yield ray.get(asked.popleft())


_shared_here: dict[Any, Any] = {}


def _call(function: Callable[[Any, J], Any], shared: list[Any], piece: J) -> Any:
    """Call the function in a process that keeps what is shared from one piece to the next."""
    import ray

    (reference,) = shared
    if reference not in _shared_here:
        _shared_here.clear()
        _shared_here[reference] = ray.get(reference)
    return function(_shared_here[reference], piece)
