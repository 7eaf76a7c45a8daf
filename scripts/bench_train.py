"""Seconds, images a second and peak memory of our training step, beside the published one.

    python scripts/bench_train.py [--config kl_f8] [--resolution 128] [--batch_size 2] [--rounds 5] [--steps 1]
        [--variants ours-bf16 reference-bf16 ours-float32 reference-float32] [--device cpu|cuda] [--threads 2]
        [--perceptual lpips_vgg_random|efficientnet_lite0|none] [--set train.optimizer=muon ...] [--output bench.json]
        [--profile]

A variant is an implementation and its options, joined by dashes:

    ours        the real step on a real state, on a synthetic batch, with the GAN
    reference   the published step, as reference_step.py writes it, NCHW
    bf16        under autocast; or float32
    compile     ours with torch.compile
    blocks      ours with that level of activation checkpointing; or full

Each variant has a process of its own, and they take turns: a round is some steps of each, and ratios are medians over
the rounds, so that what else the machine does counts for all alike. Where it does much, the CPU time beside the
wall-clock time is the steadier figure. Memory is the process's high-water mark on a CPU, the allocator's on CUDA;
activations are what lies above weights, gradients, optimizer and EMA. lpips_vgg_random has random weights in the
perceptual network: they take as long as the real ones, and need no download.

The floor of a step is what its convolutions, products and norms would take if each went as fast as the device's
arithmetic or its memory allows, by the manufacturer's sheet or as measured here. `x floor` is a step over that; MFU is
its arithmetic alone; `convolutions` is what part of a step its convolutions would take one after the other.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from bench_variants import Memory, Subject, Timing
from roofline import Floor

OPTIONS = {"bf16", "float32", "compile", "blocks", "full"}
GIB = 2**30


@dataclass(kw_only=True)
class Result:
    """A variant over all rounds."""

    variant: str
    timings: list[Timing]
    memory: Memory

    @property
    def seconds(self) -> float:
        """Median wall-clock time of a step."""
        return statistics.median(timing.seconds for timing in self.timings)

    @property
    def cpu_seconds(self) -> float:
        """Median CPU time of a step."""
        return statistics.median(timing.cpu_seconds for timing in self.timings)

    @property
    def sections(self) -> dict[str, float]:
        """Median seconds of each part of a step."""
        names = self.timings[0].sections
        return {name: statistics.median(timing.sections[name] for timing in self.timings) for name in names}


def main() -> None:
    """Measure, print a table, write JSON."""
    arguments = parse_arguments()
    floors, results = measure(arguments)
    print(table(results, batch_size=arguments.batch_size, floors=floors))
    print(*ratios(results), sep="\n")
    for precision, floor in floors.items():
        print(f"{precision} step: {floor}")
    for result in results:
        if result.variant.startswith("ours"):
            parts = ", ".join(f"{name} {seconds:.3f}" for name, seconds in result.sections.items())
            print(f"{result.variant}, seconds: {parts}")
    if arguments.output is not None:
        report = {
            "settings": vars(arguments) | {"output": str(arguments.output)},
            "machine": {"device": device_name(), "processor": platform.processor(), "torch": torch.__version__},
            "floors": {precision: asdict(floor) for precision, floor in floors.items()},
            "results": [
                asdict(result)
                | {
                    "seconds": result.seconds,
                    "cpu_seconds": result.cpu_seconds,
                    "images_per_second": arguments.batch_size / result.seconds,
                    "activations": result.memory.activations,
                    **against_floor(result, floors),
                    "sections": result.sections,
                }
                for result in results
            ],
            "ratios": ratios(results),
        }
        arguments.output.write_text(json.dumps(report, indent=2))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ["ours-bf16", "reference-bf16", "ours-float32", "reference-float32"]
    parser.add_argument("--variants", nargs="+", default=default)
    parser.add_argument("--config", default="kl_f8", help="recipe or config file")
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--perceptual", choices=["lpips_vgg_random", "efficientnet_lite0", "none"])
    parser.add_argument("--set", nargs="+", default=[], metavar="SECTION.FIELD=VALUE", help="further fields of ours")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="steps of a variant in a round")
    parser.add_argument("--warmup", type=int, default=2, help="steps before the first round")
    parser.add_argument("--output", type=Path, help="JSON file")
    parser.add_argument("--profile", action="store_true", help="print where the time of a step of each variant goes")
    parser.set_defaults(perceptual="lpips_vgg_random")
    arguments = parser.parse_args()
    for variant in arguments.variants:
        kind, *options = variant.split("-")
        if kind not in ("ours", "reference") or not set(options) <= OPTIONS or (kind != "ours" and len(options) > 1):
            parser.error(f"unknown variant {variant}")
    return arguments


def measure(arguments: argparse.Namespace) -> tuple[dict[str, Floor], list[Result]]:
    """Let the variants take turns, each in its process; also find the floor of a plain step of ours, by precision."""
    context = multiprocessing.get_context("spawn")
    children: dict[str, Connection] = {}
    for variant in arguments.variants:
        children[variant], other = context.Pipe()
        context.Process(target=serve, args=(other, variant, arguments), daemon=True).start()
        other.close()
        ask(children[variant], "ready")  # one after the other: they would slow each other down
    plain = [v for v in children if v.startswith("ours") and not {"compile", "blocks", "full"} & set(v.split("-"))]
    timings: dict[str, list[Timing]] = {variant: [] for variant in children}
    for round_index in range(arguments.rounds):
        shift = round_index % len(children)
        for variant in arguments.variants[shift:] + arguments.variants[:shift]:
            timings[variant].append(ask(children[variant], "time"))
            print(f"round {round_index + 1}: {variant} {timings[variant][-1].seconds:.3f} s", flush=True)
    results = [
        Result(variant=variant, timings=timings[variant], memory=ask(child, "memory"))
        for variant, child in children.items()
    ]
    for variant in arguments.variants if arguments.profile else []:
        print(f"{variant}\n{ask(children[variant], 'profile')}", flush=True)
    return {precision_of(variant): ask(children[variant], "floor") for variant in plain}, results


def serve(connection: Connection, variant: str, arguments: argparse.Namespace) -> None:
    """Answer the parent's questions about a variant until it ends."""
    subject = Subject(variant, arguments)
    while True:
        try:
            question = connection.recv()
        except EOFError:
            return
        connection.send(None if question == "ready" else getattr(subject, question)())


def ask(child: Connection, question: str) -> Any:
    """Wait for a child's answer."""
    child.send(question)
    try:
        return child.recv()
    except EOFError:
        raise SystemExit("a variant's process ended; its error is above") from None


def table(results: list[Result], *, batch_size: int, floors: dict[str, Floor]) -> str:
    """A line a variant."""
    columns = "s/step  CPU s/step  images/s  peak GiB  activations GiB    MFU  x floor  convolutions"
    lines = [f"{'variant':<26}{columns}"]
    for result in results:
        line = (
            f"{result.variant:<24} {result.seconds:7.3f} {result.cpu_seconds:11.3f} {batch_size / result.seconds:9.2f}"
            f" {result.memory.peak / GIB:9.2f} {result.memory.activations / GIB:16.2f}"
        )
        if compared := against_floor(result, floors):
            mfu, times, share = compared.values()
            line += f" {mfu:6.1%} {times:8.2f} {share:13.1%}"
        lines.append(line)
    return "\n".join(lines)


def precision_of(variant: str) -> str:
    """The precision of a variant."""
    return "bf16" if "bf16" in variant.split("-") else "float32"


def against_floor(result: Result, floors: dict[str, Floor]) -> dict[str, float]:
    """A step beside the floor of our plain one in its precision; nothing where that was not measured."""
    floor = floors.get(precision_of(result.variant))
    return {} if floor is None else floor.compared(result.seconds)


def ratios(results: list[Result]) -> list[str]:
    """How many times as fast as each published variant ours are, and what checkpointing costs."""
    lines = []
    ours = [result for result in results if result.variant.startswith("ours")]
    for base in results:
        for result in ours:
            if base is result or (base in ours and not result.variant.startswith(base.variant)):
                continue
            pairs = list(zip(base.timings, result.timings, strict=True))
            wall = statistics.median(a.seconds / b.seconds for a, b in pairs)
            cpu = statistics.median(a.cpu_seconds / b.cpu_seconds for a, b in pairs)
            memory = result.memory.activations / base.memory.activations
            lines.append(
                f"{result.variant} beside {base.variant}: {wall:.2f} times as fast ({cpu:.2f} by CPU time), "
                f"{memory:.2f} of its activations"
            )
    return lines


def device_name() -> str:
    """The GPU's name, or CPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


if __name__ == "__main__":
    main()
