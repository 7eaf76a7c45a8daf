"""Encoding on a Ray cluster whose nodes and drivers are killed; the bytes have to be those of one undisturbed process.

    python scripts/stress_ray.py [--part nodes|kills] [--images 240] [--nodes 3] [--kills 10] [--drivers 2] [--seed 0]

All nodes run on this machine. For 1, 2, … nodes an encode runs undisturbed (`nodes`). Then nodes die of SIGKILL at
random moments, each replaced by a new one, and the driver too, until the killings are done; the last driver finishes
(`kills`). `bench_engines.py` compares throughputs.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from ray.cluster_utils import Cluster

from ldm_vae.latents.dataset import LatentDataset

STORE_BYTES = 10**8
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


def make_inputs(folder: Path, *, images: int) -> None:
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for number in range(images):
        pixels = rng.integers(0, 255, (9, 12, 3), np.uint8)
        Image.fromarray(pixels).resize((320, 240), Image.Resampling.BICUBIC).save(
            folder / "photos" / f"{number:05d}.jpg"
        )
    (folder / "photos" / "00007.jpg").write_bytes(b"no image")
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(16, 32, 32), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=8,
    ).save_pretrained(folder / "vae")  # fmt: skip


def start(folder: Path, output: str, *extra: str) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "ldm_vae",
        "encode",
        "--vae",
        str(folder / "vae"),
        "--data",
        str(folder / "photos"),
    ]
    command += [
        "--output",
        str(folder / output),
        "--resolution",
        "128",
        "--shard_size",
        "8",
        "--mixed_precision",
        "no",
    ]
    return subprocess.Popen([*command, *extra], env={**os.environ, **ENVIRONMENT}, stdout=subprocess.DEVNULL)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def shards(folder: Path) -> int:
    return len(list(folder.glob("latents-*.json"))) if folder.exists() else 0


def disturbed(cluster: Any, nodes: list[Any], folder: Path, *, kills: int, drivers: int, rng: random.Random) -> None:
    """Kill nodes and drivers while the encode goes on; a driver that finishes before is started into a new output."""
    on_ray = ["--engine", "ray", "--ray.address", cluster.address]
    output = folder / "killed"
    rounds = 0
    while kills > 0 or drivers > 0:
        rounds += 1
        driver = start(folder, "killed", *on_ray)
        while driver.poll() is None and (kills > 0 or drivers > 0):
            time.sleep(rng.uniform(0.5, 4))
            if driver.poll() is None and shards(output) > 0:
                if kills > 0 and (drivers == 0 or rng.random() < 0.8):
                    cluster.remove_node(nodes.pop(rng.randrange(len(nodes))), allow_graceful=False)
                    nodes.append(cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES))
                    kills -= 1
                    print(f"a node killed at {shards(output)} shards", flush=True)
                elif drivers > 0:
                    driver.send_signal(signal.SIGKILL)
                    drivers -= 1
                    print(f"the driver killed at {shards(output)} shards", flush=True)
        if (kills > 0 or drivers > 0) and driver.wait() == 0:
            shutil.rmtree(output)
    if driver.wait() != 0:
        assert start(folder, "killed", *on_ray).wait() == 0
    print(f"finished; drivers started while something was killed: {rounds}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--drivers", type=int, default=2)
    parser.add_argument("--part", choices=["nodes", "kills"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_inputs(folder, images=options.images)
        assert start(folder, "local").wait() == 0
        expected = contents(folder / "local")
        cluster = Cluster(initialize_head=True, head_node_args={
            "num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE_BYTES})  # fmt: skip
        nodes: list[Any] = []
        for count in range(1, options.nodes + 1):
            if options.part != "kills":
                assert start(folder, f"ray-{count}", "--engine", "ray", "--ray.address", cluster.address).wait() == 0
                assert contents(folder / f"ray-{count}") == expected
                print(f"{count} node(s): the bytes of a local encode", flush=True)
            if count < options.nodes:
                nodes.append(cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES))
        if options.part != "nodes":
            rng = random.Random(options.seed)
            disturbed(cluster, nodes, folder, kills=options.kills, drivers=options.drivers, rng=rng)
            assert contents(folder / "killed") == expected
            dataset = LatentDataset(folder / "killed", verify=True)
            numbers = [dataset[row].sample for row in range(len(dataset))]
            assert numbers == [number for number in range(options.images) if number != 7]
            print(f"{options.kills} nodes and {options.drivers} drivers killed: the same bytes, one row an image")
        cluster.shutdown()


if __name__ == "__main__":
    main()
