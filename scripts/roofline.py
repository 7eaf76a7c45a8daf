"""What a network's work could take at the least: operations, bytes, and the time of its convolutions alone."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

Precision = Literal["bf16", "tf32", "float32"]

# Dense peaks as the manufacturers state them, in TFLOP/s: bf16, float32 with TF32, exact float32; the memory's TB/s.
SHEETS: dict[str, dict[str, float]] = {
    "H100": {"bf16": 989.0, "tf32": 494.5, "float32": 66.9, "memory": 3.35},
    "H200": {"bf16": 989.0, "tf32": 494.5, "float32": 66.9, "memory": 4.8},
    "A100": {"bf16": 312.0, "tf32": 156.0, "float32": 19.5, "memory": 2.04},
    "L40S": {"bf16": 362.0, "tf32": 183.0, "float32": 91.6, "memory": 0.864},
    "RTX 4090": {"bf16": 165.2, "tf32": 82.6, "float32": 82.6, "memory": 1.008},
}
NORMS = ("native_group_norm", "native_batch_norm", "group_norm_silu", "native_layer_norm")
CONVOLUTIONS = ("convolution", "convolution_backward")


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """What a device can do."""

    name: str
    flops: float
    """Operations a second."""
    bytes: float
    """Bytes a second of its memory."""
    measured: bool
    """Whether both were measured here, instead of being the manufacturer's."""

    def __str__(self) -> str:
        whence = "measured here" if self.measured else "by its sheet"
        return f"{self.name}: {self.flops / 1e12:.4g} TFLOP/s, {self.bytes / 1e12:.3g} TB/s, {whence}"


@dataclass(frozen=True)
class Call:
    """One call of an operator, as far as its work depends on it."""

    name: str
    flops: int
    bytes: int
    """The least that moves: operands and results once, for a norm the map in and out."""
    signature: tuple[Any, ...] | None = None
    """What a convolution is called with, for it to be called again."""


class Work(TorchDispatchMode):
    """Counts what operators run: convolutions and products with their operations and bytes, norms with their bytes.

    All else that is elementwise could be fused into those, and counts nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Call] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        packet = func.overloadpacket
        name = packet.__name__
        if packet in flop_registry:
            flops = flop_registry[packet](*args, **kwargs, out_val=result)
            signature = _signature(args) if name in CONVOLUTIONS else None
            moved = size_of(args) + size_of(result)
            self.calls[Call(name, flops, moved, signature)] += 1
        elif name.removesuffix("_backward") in NORMS:
            maps = [tensor for tensor in (*tensors_in(args), *tensors_in(result)) if tensor.ndim > 2]
            self.calls[Call(name, 0, size_of(maps))] += 1
        return result

    @property
    def flops(self) -> int:
        """Operations, by torch's own counts."""
        return sum(call.flops * times for call, times in self.calls.items())

    @property
    def bytes(self) -> int:
        """The least bytes that move."""
        return sum(call.bytes * times for call, times in self.calls.items())

    def floor_seconds(self, ceiling: Ceiling) -> float:
        """The least time: of each call what its operations or its bytes take, whichever is more."""
        return sum(
            times * max(call.flops / ceiling.flops, call.bytes / ceiling.bytes) for call, times in self.calls.items()
        )

    def convolution_seconds(self, device: torch.device, *, at_least: float = 0.05) -> float:
        """Seconds that the same convolutions take one after the other, with nothing between them."""
        total = 0.0
        for call, times in self.calls.items():
            if call.signature is not None:
                total += times * seconds_of(_again(call, device), device=device, at_least=at_least)
        return total


@dataclass(frozen=True, kw_only=True)
class Floor:
    """What a piece of work is measured by."""

    ceiling: Ceiling
    flops: int
    bytes: int
    seconds: float
    """The least time under the ceiling."""
    convolution_seconds: float
    """What its convolutions took, one after the other with nothing between them."""

    @classmethod
    def of(cls, run: Callable[[], object], *, device: torch.device, precision: Precision) -> Floor:
        """Count and measure a call."""
        work, ceiling = counted(run), ceiling_of(device, precision)
        return cls(
            ceiling=ceiling,
            flops=work.flops,
            bytes=work.bytes,
            seconds=work.floor_seconds(ceiling),
            convolution_seconds=work.convolution_seconds(device),
        )

    def mfu(self, seconds: float) -> float:
        """Model FLOPs utilisation of so many seconds: the operations, over what the device could have done."""
        return self.flops / seconds / self.ceiling.flops

    def compared(self, seconds: float) -> dict[str, float]:
        """How far so many seconds are from the floor, and from the convolutions alone."""
        return {
            "mfu": self.mfu(seconds),
            "times_the_floor": seconds / self.seconds,
            "share_in_convolutions": self.convolution_seconds / seconds,
        }

    def __str__(self) -> str:
        return (
            f"floor {self.seconds * 1e3:.4g} ms ({self.flops / 1e12:.4g} TFLOP, {self.bytes / 1e9:.3g} GB; "
            f"{self.ceiling}); the convolutions alone {self.convolution_seconds * 1e3:.4g} ms"
        )


def counted(run: Callable[[], object]) -> Work:
    """Return the work of a call."""
    with Work() as work:
        run()
    return work


def ceiling_of(device: torch.device, precision: Precision) -> Ceiling:
    """Return the ceiling of a GPU by its sheet; where that isn't known here, or on a CPU, as measured."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    sheet = next((sheet for card, sheet in SHEETS.items() if card in name), None)
    if sheet is not None:
        return Ceiling(name=name, flops=sheet[precision] * 1e12, bytes=sheet["memory"] * 1e12, measured=False)
    return measured_ceiling(device, precision)


def measured_ceiling(device: torch.device, precision: Precision) -> Ceiling:
    """Measure a matrix product and a copy."""
    side, words = (8192, 2**28) if device.type == "cuda" else (1024, 2**24)
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    source = torch.ones(words, device=device)
    target = torch.empty_like(source)
    return Ceiling(
        name=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        flops=2 * side**3 / seconds_of(lambda: a @ a, device=device, at_least=0.3),
        bytes=2 * size_of(source) / seconds_of(lambda: target.copy_(source), device=device, at_least=0.3),
        measured=True,
    )


@torch.no_grad()
def seconds_of(run: Callable[[], object], *, device: torch.device, at_least: float) -> float:
    """Return the median seconds of a call, of as many as take `at_least` seconds together, after one to warm up."""
    run()
    found: list[float] = []
    while sum(found) < at_least or len(found) < 3:
        found.append(once(run, device=device))
        if found[0] > at_least:
            break
    return sorted(found)[len(found) // 2]


def seconds_of_kernels(run: Callable[[], object], *, at_least: float) -> float:
    """Return the median seconds of a call on CUDA without those of launching: a graph launches ten calls together."""
    for _ in range(2):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(10):
            run()
    return seconds_of(graph.replay, device=torch.device("cuda"), at_least=at_least) / 10


def once(run: Callable[[], object], *, device: torch.device) -> float:
    """Return the seconds of a call, by the device's own clock where it has one."""
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def size_of(values: Any) -> int:
    """Bytes of all tensors in a structure."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(values))


def tensors_in(values: Any) -> list[Tensor]:
    """All tensors in a structure of tuples and lists."""
    if isinstance(values, Tensor):
        return [values]
    return [tensor for value in values for tensor in tensors_in(value)] if isinstance(values, (tuple, list)) else []


def _signature(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """What stands for a convolution's arguments: a tensor's shape, strides and type, lists as tuples."""
    return tuple(
        (Tensor, tuple(value.shape), value.stride(), value.dtype)
        if isinstance(value, Tensor)
        else tuple(value)
        if isinstance(value, list)
        else value
        for value in args
    )


def _again(call: Call, device: torch.device) -> Callable[[], object]:
    """Return what calls a convolution again, on numbers of its own."""
    assert call.signature is not None
    operator = getattr(torch.ops.aten, call.name).default
    args = [
        _like(*value[1:], device=device)
        if isinstance(value, tuple) and value and value[0] is Tensor
        else list(value)
        if isinstance(value, tuple)
        else value
        for value in call.signature
    ]
    return lambda: operator(*args)


def _like(size: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype, *, device: torch.device) -> Tensor:
    """Return numbers in a layout; elements of an expanded dimension share theirs."""
    length = 1 + sum((count - 1) * stride for count, stride in zip(size, strides, strict=True))
    return torch.randn(length, dtype=dtype, device=device).as_strided(size, strides)
