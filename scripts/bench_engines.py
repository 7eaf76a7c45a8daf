"""Throughput of an encode on a Ray cluster of this machine, and to and from an S3 server here, beside a local one.

    python scripts/bench_engines.py [--images 400] [--side 256] [--rounds 5] [--only ray|s3]

Each round encodes the same pictures once by each way, in turn, as commands of their own; what is compared is what
each says itself of its images a second, from the first claim to the written index, so without starts. It needs
`ldm-vae[ray]` and `moto[server]` with `ldm-vae[s3]`, and a machine on which nothing else runs.
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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import fsspec
from stress_ray import ENVIRONMENT, make_inputs

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


def images_a_second(vae: str, data: str, output: str, *, side: int, extra: tuple[str, ...]) -> float:
    """Encode in a process of its own; return what its summary says."""
    command = [sys.executable, "-m", "ldm_vae", "encode", "--vae", vae, "--data", data, "--output", output]
    command += ["--resolution", str(side), "--shard_size", "64", "--mixed_precision", "no", *extra]
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = re.search(r"([\d,.]+) images/s", done.stdout)
    assert found is not None, done.stdout
    return float(found[1].replace(",", ""))


@contextmanager
def s3_server(port: int = 5555) -> Iterator[None]:
    """Serve S3 on this machine, from a process of its own."""
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.environ |= {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    try:
        for _ in range(60):
            time.sleep(0.5)
            try:
                fsspec.filesystem("s3", skip_instance_cache=True).makedirs("bucket", exist_ok=True)
                break
            except Exception:
                assert server.poll() is None
        yield
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["ray", "s3"])
    options = parser.parse_args()
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        make_inputs(folder, images=options.images)
        photos, on_ray = str(folder / "photos"), ("--engine", "ray", "--ray.address", "local")
        ways = {"local": (photos, temporary, ()), "ray": (photos, temporary, on_ray)}
        if options.only != "ray":
            stack.enter_context(s3_server())
            fsspec.filesystem("s3").put(photos, "bucket/photos", recursive=True)
            ways["s3"] = ("s3://bucket/photos", "s3://bucket", ())
        if options.only == "s3":
            del ways["ray"]
        for number in range(options.rounds):
            for way, (data, place, extra) in ways.items():
                output = f"{place}/{way}-{number}"
                rate = images_a_second(str(folder / "vae"), data, output, side=options.side, extra=extra)
                rates.setdefault(way, []).append(rate)
            print(", ".join(f"{way} {rates[way][-1]:.1f} images/s" for way in ways), flush=True)
    for way in ways.keys() - {"local"}:
        ratios = sorted(each / local for each, local in zip(rates[way], rates["local"], strict=True))
        print(f"{way} over local: median {statistics.median(ratios):.3f}, from {ratios[0]:.3f} to {ratios[-1]:.3f}")


if __name__ == "__main__":
    main()
