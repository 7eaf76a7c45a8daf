"""Encoding on a Ray cluster whose nodes and drivers are killed; the bytes have to be those of one undisturbed process.

    python scripts/stress_ray.py [--part nodes|kills] [--s3] [--images 240] [--nodes 3] [--kills 10] [--drivers 2]
                                 [--seed 0]

All nodes run on this machine. For 1, 2, … nodes an encode runs undisturbed (`nodes`). Then nodes die of SIGKILL at
random moments, with all of their processes, each replaced by a new one, and the driver too, until the killings are
done; the last driver finishes (`kills`). With `--s3` pictures and latents lie on an S3 server here, behind a proxy
that is slow and fails, drops or cuts off 5 % of the requests; that takes `moto[server]` and `ldm-vae[s3]`.
`bench_engines.py` compares throughputs.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import psutil
import torch
from diffusers import AutoencoderKL
from local_s3 import bad_network, object_names, objects, s3_server
from PIL import Image
from ray.cluster_utils import Cluster

from ldm_vae.latents.dataset import LatentDataset

STORE_BYTES = 10**8
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
BROKEN = 7


def make_inputs(folder: Path, *, images: int) -> None:
    """Save pictures, one of them none, and a small autoencoder."""
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for number in range(images):
        pixels = rng.integers(0, 255, (9, 12, 3), np.uint8)
        Image.fromarray(pixels).resize((320, 240), Image.Resampling.BICUBIC).save(
            folder / "photos" / f"{number:05d}.jpg"
        )
    (folder / "photos" / f"{BROKEN:05d}.jpg").write_bytes(b"no image")
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(16, 32, 32), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=8,
    ).save_pretrained(folder / "vae")  # fmt: skip


@dataclass
class Place:
    """Where pictures and latents lie."""

    folder: Path
    data: str
    outputs: str
    """Folder or address that outputs lie under."""
    server: dict[str, str] | None = None
    """Environment that leads to the S3 server itself, past the proxy."""

    def start(self, output: str, *extra: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "ldm_vae", "encode", "--vae", str(self.folder / "vae"), "--data", self.data]
        command += ["--output", output if "/" in output else f"{self.outputs}/{output}", "--resolution", "128"]
        command += ["--shard_size", "8", "--mixed_precision", "no"]
        return subprocess.Popen([*command, *extra], env={**os.environ, **ENVIRONMENT}, stdout=subprocess.DEVNULL)

    def contents(self, output: str) -> dict[str, bytes]:
        return contents(self.folder / output) if self.server is None else objects(f"bucket/{output}", self.server)

    def num_shards(self, output: str) -> int:
        names = (
            os.listdir(self.folder / output) if self.server is None else object_names(f"bucket/{output}", self.server)
        )
        return sum(name.startswith("latents-") and name.endswith(".json") for name in names)


def contents(folder: Path) -> dict[str, bytes]:
    with suppress(FileNotFoundError):
        return {path.name: path.read_bytes() for path in folder.iterdir()}
    return {}


def kill_node(cluster: Any, node: Any) -> None:
    """Kill all processes of a node at once, as when its machine fails."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    workers = raylet.children(recursive=True)
    raylet.kill()
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            worker.kill()
    cluster.remove_node(node, allow_graceful=False)


def disturbed(cluster: Any, nodes: list[Any], place: Place, *, kills: int, drivers: int, rng: random.Random) -> str:
    """Kill nodes and drivers while the encode goes on; a driver that finishes before is started into a new output.

    Between two kills a shard comes at least, or all of them could fall into one driver's start.
    """
    on_ray = ["--engine", "ray", "--ray.address", cluster.address]
    started = time.monotonic()
    finished = num_drivers = seen = 0
    while True:
        output = f"killed-{finished}"
        driver = place.start(output, *on_ray)
        num_drivers += 1
        shards = 0
        while driver.poll() is None and (kills > 0 or drivers > 0):
            time.sleep(rng.uniform(0.5, 4))
            with suppress(FileNotFoundError):
                shards = place.num_shards(output)
            if driver.poll() is not None or shards <= seen:
                continue
            seen = shards
            if kills > 0 and (drivers == 0 or rng.random() < 0.8):
                kill_node(cluster, nodes.pop(rng.randrange(len(nodes))))
                nodes.append(cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES))
                kills -= 1
                print(f"{time.monotonic() - started:.0f} s: a node killed at {shards} shards", flush=True)
            elif drivers > 0:
                driver.send_signal(signal.SIGKILL)
                driver.wait()
                drivers -= 1
                print(f"{time.monotonic() - started:.0f} s: the driver killed at {shards} shards", flush=True)
        if driver.wait() == 0:
            if kills == drivers == 0:
                print(f"{time.monotonic() - started:.0f} s: finished by driver {num_drivers}", flush=True)
                return output
            finished += 1
            seen = 0


def check_nodes(cluster: Any, place: Place, *, count: int, expected: dict[str, bytes]) -> None:
    started = time.monotonic()
    assert place.start(f"ray-{count}", "--engine", "ray", "--ray.address", cluster.address).wait() == 0
    assert place.contents(f"ray-{count}") == expected
    print(f"{count} node(s): the bytes of a local encode, {time.monotonic() - started:.0f} s", flush=True)


def make_place(folder: Path, stack: ExitStack) -> Place:
    """Put the pictures on an S3 server, to which the environment leads from now on."""
    server = stack.enter_context(s3_server())
    os.environ |= server
    fsspec.filesystem("s3", skip_instance_cache=True).put(str(folder / "photos"), "bucket/photos", recursive=True)
    return Place(folder, data="s3://bucket/photos", outputs="s3://bucket", server=server)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--drivers", type=int, default=2)
    parser.add_argument("--part", choices=["nodes", "kills"])
    parser.add_argument("--s3", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        faults = folder / "faults.txt"
        make_inputs(folder, images=options.images)
        place = Place(folder, data=str(folder / "photos"), outputs=temporary)
        if options.s3:
            place = make_place(folder, stack)
        assert place.start(str(folder / "local")).wait() == 0
        expected = contents(folder / "local")
        if place.server is not None:
            os.environ |= stack.enter_context(bad_network(place.server, rate=0.05, slow_seconds=0.01, faults=faults))
        cluster = Cluster(initialize_head=True, head_node_args={
            "num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE_BYTES})  # fmt: skip
        nodes: list[Any] = []
        for count in range(1, options.nodes + 1):
            if options.part != "kills":
                check_nodes(cluster, place, count=count, expected=expected)
            if count < options.nodes:
                nodes.append(cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES))
        if options.part != "nodes":
            rng = random.Random(options.seed)
            output = disturbed(cluster, nodes, place, kills=options.kills, drivers=options.drivers, rng=rng)
            found = place.contents(output)
            differing = [name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)]
            assert not differing, differing
            dataset = LatentDataset(folder / "local", verify=True)
            numbers = [dataset[row].sample for row in range(len(dataset))]
            assert numbers == [number for number in range(options.images) if number != BROKEN]
            print(f"{options.kills} nodes and {options.drivers} drivers killed: the same bytes, one row an image")
        if place.server is not None:
            print(f"faults: {dict(Counter(faults.read_text().split()))}")
        cluster.shutdown()


if __name__ == "__main__":
    main()
