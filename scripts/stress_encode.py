"""Kill encoding processes at random, again and again, and see that the latents are the same to the last bit.

    python scripts/stress_encode.py --kills 20

For 1, 2 and 3 processes in turn: start them on one output folder, kill one of them (or all) with SIGKILL at a random
moment, start it again, until there were so many kills; a folder finished meanwhile is compared and another begun.
Every finished folder must hold the bytes that one process wrote which nobody killed. Some images are damaged.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import tempfile
import time
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from ldm_vae.config.commands.encode import EncodeOptions
from ldm_vae.encoding.encode import encode


def save_vae(folder: Path) -> None:
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
    ).save_pretrained(folder)


def save_images(folder: Path, *, count: int, damaged: int) -> None:
    """Save random pictures, every so many-th of them cut off."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"{i:05d}.jpg"
        Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((128, 96)).save(path)
        if i % (count // damaged) == 7:
            path.write_bytes(path.read_bytes()[:400])


def work(options: EncodeOptions) -> None:
    torch.set_num_threads(1)
    encode(options)


def start(options: EncodeOptions) -> ForkServerProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ldm_vae.encoding.encode"])
    process = context.Process(target=work, args=(options,))
    process.start()
    return process


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in sorted(os.listdir(folder))}


def check(folder: Path, expected: dict[str, bytes]) -> None:
    found = contents(folder)
    different = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if different:
        raise SystemExit(f"{folder} differs from the undisturbed output in {', '.join(different)}")


def torment(options: EncodeOptions, *, processes: int, kills: int, expected: dict[str, bytes], root: Path) -> None:
    """Kill and restart until there were `kills`, and compare every finished output."""
    done = folders = restarts = 0
    while done < kills:
        output = root / f"processes-{processes}-folder-{folders}"
        job = replace(options, output=str(output))
        running = [start(job) for _ in range(processes)]
        while any(process.is_alive() for process in running):
            if done < kills:
                time.sleep(random.uniform(0.05, 1.5))
                victims = running if random.random() < 0.3 else [random.choice(running)]
                for process in victims:
                    if process.is_alive() and process.pid is not None:
                        os.kill(process.pid, signal.SIGKILL)
                        process.join()
                        running[running.index(process)] = start(job)
                        done, restarts = done + 1, restarts + 1
            else:
                for process in running:
                    process.join()
        if any(process.exitcode != 0 for process in running):
            raise SystemExit(f"a process that nobody killed failed in {output}")
        check(output, expected)
        folders += 1
    print(f"{processes} process(es): {done} kills, {folders} output(s), each byte-identical", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="kills for each number of processes")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--seed", type=int, default=None, help="of the moments of the kills")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        save_vae(root / "vae")
        save_images(root / "images", count=arguments.images, damaged=20)
        options = EncodeOptions(
            vae=str(root / "vae"),
            data=str(root / "images"),
            output=str(root / "undisturbed"),
            resolution=64,
            shard_size=16,
            batch_size=4,
            num_workers=0,
        )
        undisturbed = start(options)
        undisturbed.join()
        expected = contents(root / "undisturbed")
        print(f"undisturbed: {len(expected)} files, {sum(map(len, expected.values())) / 1e6:.1f} MB", flush=True)
        for processes in (1, 2, 3):
            torment(options, processes=processes, kills=arguments.kills, expected=expected, root=root)


if __name__ == "__main__":
    main()
