"""Pieces of work on a Ray cluster: actors that hold a device each, and tasks on the CPUs that prepare for them.

What is lost with a node is done again by Ray, so a piece of work must give the same however often it is tried.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ldm_vae.system.ray_cluster import shares

J = TypeVar("J")

PIECES_AT_ONCE = 2
"""Pieces that an actor works on: while one is on the device the next is prepared."""
_POLL_SECONDS = 0.5
_LOOK_SECONDS = 10.0


@dataclass(kw_only=True, eq=False)
class _Actor:
    handle: Any
    running: int = 0


class RayActors:
    """Actors on all GPUs of a cluster, or on all nodes where there are none; nodes that join get theirs.

    Args:
        ray: The package, connected.
        kind: The actors' class, with the options that it has anyway.
        arguments: Makes the constructor's arguments, given how many batches an actor has prepared ahead.
    """

    def __init__(self, ray: Any, kind: type, *, arguments: Callable[[int], Sequence[Any]]) -> None:
        self._ray, self._kind, self._arguments = ray, kind, arguments
        self._actors: list[_Actor] = []
        self._running: dict[Any, _Actor] = {}
        self._looked = -_LOOK_SECONDS

    def each(self, call: Callable[[Any, J], Any], pieces: Iterable[J]) -> Iterator[Any]:
        """Yield what the actors return, as it comes.

        Args:
            call: Calls a method of an actor's handle with a piece of work, and returns Ray's reference.
            pieces: The work; the next piece is taken when an actor has room for it.
        """
        left = iter(pieces)
        while self._fill(call, left) or self._running:
            done, _ = self._ray.wait(list(self._running), timeout=_POLL_SECONDS)
            for reference in done:
                self._running.pop(reference).running -= 1
                yield self._ray.get(reference)

    def _fill(self, call: Callable[[Any, J], Any], pieces: Iterator[J]) -> bool:
        """Give each actor as many pieces as it takes; whether there was one."""
        self._look_for_actors()
        filled = False
        for _ in range(PIECES_AT_ONCE):
            for actor in self._actors:
                if actor.running == PIECES_AT_ONCE:
                    continue
                for piece in pieces:
                    self._running[call(actor.handle, piece)] = actor
                    actor.running += 1
                    filled = True
                    break
        return filled

    def _look_for_actors(self) -> None:
        """Start the actors that the cluster has room for; it may have grown. Ray starts those anew that are lost."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        share = shares(self._ray)
        kind = self._ray.remote(self._kind).options(
            num_cpus=0,
            num_gpus=share.gpus,
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=PIECES_AT_ONCE,
            scheduling_strategy="SPREAD",
        )
        while len(self._actors) < share.num_actors:
            self._actors.append(_Actor(handle=kind.remote(*self._arguments(share.batches_ahead))))


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
