"""Signals that ask a run to save and stop, agreed on by all processes."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopSignal:
    """Takes SIGTERM (a scheduler's end of time), SIGUSR1 (Slurm's preemption) and the first Ctrl-C.

    A signal may reach the processes at different moments, or reach only one of them. So in each step they take the
    maximum of their flags, on the hosts, while the step computes: `begin` starts the reduction, and `agreed` waits
    for its result.

    Args:
        group: All processes, by gloo; None where there is one process.
    """

    def __init__(self, *, group: dist.ProcessGroup | None):
        self.received: signal.Signals | None = None
        self._group = group
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._work: Any = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    def begin(self) -> None:
        """Start telling the other processes, while the step computes."""
        if self._group is not None:
            self._flag.fill_(self.received or 0)
            self._work = dist.all_reduce(self._flag, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def agreed(self) -> signal.Signals | None:
        """Return the signal that all processes act on after this step, or None."""
        if self._group is None:
            return self.received
        self._work.wait()
        return signal.Signals(int(self._flag)) if self._flag else None
