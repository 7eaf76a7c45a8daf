"""Throughput of an encode on a Ray cluster of this machine, and from and to an S3 server here, beside a local one.

    python scripts/bench_engines.py [--images 400] [--side 256] [--rounds 5] [--only ray|s3]

Each round encodes all pictures and a quarter of them by each way, in turn, as commands of their own. What is compared
is what the further pictures take, so the ways' starts don't count: the seconds that the command says it encoded for,
and the seconds of processors that it and all that it started have used, without those of the S3 server. The first
tell something only on a machine on which nothing else runs, the second on any. The bytes are compared too. It needs
`ldm-vae[ray]`, psutil, and `moto[server]` with `ldm-vae[s3]`.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import fsspec
import psutil
from local_s3 import objects, s3_server
from stress_ray import ENVIRONMENT, contents, make_inputs

_LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Cost:
    """What an encode took."""

    seconds: float
    """From the first claim to the written index."""
    cpu_seconds: float
    """Of the command and of all that it started."""

    def beyond(self, other: Cost, *, images: int) -> Cost:
        """Return what each of the further images took."""
        return Cost((self.seconds - other.seconds) / images, (self.cpu_seconds - other.cpu_seconds) / images)


def encode(vae: str, data: str, output: str, *, side: int, extra: tuple[str, ...]) -> Cost:
    """Encode in a process of its own, and look what it and its children use."""
    command = [sys.executable, "-m", "ldm_vae", "encode", "--vae", vae, "--data", data, "--output", output]
    command += ["--resolution", str(side), "--shard_size", "64", "--mixed_precision", "no", *extra]
    used: dict[tuple[int, float], float] = {}
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, env={**os.environ, **ENVIRONMENT}, stdout=printed, stderr=errors)
        started = psutil.Process(process.pid)
        while process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                for each in [started, *started.children(recursive=True)]:
                    with suppress(psutil.NoSuchProcess):
                        times = each.cpu_times()
                        used[each.pid, each.create_time()] = times.user + times.system
            time.sleep(_LOOK_SECONDS)
        printed.seek(0)
        errors.seek(0)
        assert process.returncode == 0, errors.read()
        found = re.search(r"encoded [\d,]+ images in ([\d,.]+) s,", text := printed.read())
    assert found is not None, text
    return Cost(float(found[1].replace(",", "")), sum(used.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["ray", "s3"])
    options = parser.parse_args()
    costs: dict[str, list[Cost]] = {}
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        make_inputs(folder, images=options.images)
        names = sorted(path.name for path in (folder / "photos").iterdir())[: options.images // 4]
        (folder / "few").mkdir()
        for name in names:
            os.link(folder / "photos" / name, folder / "few" / name)
        ways: dict[str, tuple[str, tuple[str, ...]]] = {"local": (temporary, ())}
        if options.only != "s3":
            ways["ray"] = (temporary, ("--engine", "ray", "--ray.address", "local"))
        if options.only != "ray":
            os.environ |= stack.enter_context(s3_server())
            for data in ("photos", "few"):
                fsspec.filesystem("s3").put(str(folder / data), f"bucket/{data}", recursive=True)
            ways["s3"] = ("s3://bucket", ())
        for number in range(options.rounds):
            for way, (place, extra) in ways.items():
                few, all_of_them = (
                    encode(str(folder / "vae"), f"{place}/{data}", f"{place}/{way}-{data}-{number}",
                           side=options.side, extra=extra)
                    for data in ("few", "photos")
                )  # fmt: skip
                cost = all_of_them.beyond(few, images=options.images - len(names))
                costs.setdefault(way, []).append(cost)
                print(f"{way}: {1 / cost.seconds:.2f} images/s, {cost.cpu_seconds:.4f} CPU seconds an image, "
                      f"start {few.seconds - len(names) * cost.seconds:.1f} s", flush=True)  # fmt: skip
                output = f"{way}-photos-{number}"
                there = objects(f"bucket/{output}") if way == "s3" else contents(folder / output)
                expected = contents(folder / f"local-photos-{number}")
                for name in (name for name in expected if name.endswith(".safetensors")):
                    assert there[name] == expected[name], f"{way} wrote other bytes than a local encode: {name}"
    for way in ways.keys() - {"local"}:
        for what in ("seconds", "cpu_seconds"):
            pairs = zip(costs["local"], costs[way], strict=True)
            ratios = sorted(getattr(local, what) / getattr(each, what) for local, each in pairs)
            name = {"seconds": "throughput", "cpu_seconds": "throughput by CPU seconds"}[what]
            middle = statistics.median(ratios)
            print(f"{way}, {name} over local's: median {middle:.3f}, from {ratios[0]:.3f} to {ratios[-1]:.3f}")


if __name__ == "__main__":
    main()
