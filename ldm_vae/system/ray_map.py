"""A function on many values, on a Ray cluster."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_VALUES_A_TASK = 32
_TASKS_A_CPU = 2


class RayMap:
    """Calls a function on values, some of them in each task, and yields the results in order.

    Args:
        ray: The package, connected.
    """

    def __init__(self, ray: Any) -> None:
        self._ray = ray

    def each(self, function: Callable[[T], R], values: Iterable[T]) -> Iterator[R]:
        """Yield the function's results; what is lost with a node is done again."""
        task = self._ray.remote(_apply).options(num_cpus=1, max_retries=-1)
        left, asked = iter(values), deque[Any]()
        function_put = self._ray.put(function)
        while True:
            ahead = max(2, _TASKS_A_CPU * int(self._ray.cluster_resources().get("CPU", 1)))
            while len(asked) < ahead and (some := list(islice(left, _VALUES_A_TASK))):
                asked.append(task.remote(function_put, some))
            if not asked:
                return
            yield from self._ray.get(asked.popleft())


def _apply(function: Callable[[T], R], values: list[T]) -> list[R]:
    return [function(value) for value in values]
