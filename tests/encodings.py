"""Encodings of tiny pictures by a tiny autoencoder, and real processes that encode."""

from __future__ import annotations

import itertools
import json
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from ldm_vae.config.commands.encode import EncodeOptions
from ldm_vae.encoding.encode import encode
from ldm_vae.encoding.summary import EncodeSummary
from ldm_vae.encoding.work import ShardWork
from ldm_vae.latents.shards import ShardRecord
from tests.launching import SECONDS, forking
from tests.pictures import picture, save_pictures
from tests.tiny import tiny_autoencoder

FACTOR = 2
RESOLUTION = 16


def save_vae(folder: Path, *, seed: int = 0, **config: Any) -> str:
    """Write a tiny autoencoder into a folder; return its path."""
    tiny_autoencoder(seed=seed, **config).save_pretrained(folder)
    return str(folder)


def save_photos(folder: Path, *, count: int, broken: int) -> str:
    """Write pictures into a new folder, one of them no picture; return its path."""
    path = Path(save_pictures(folder, count=count))
    (path / f"{broken:04d}.png").write_bytes(b"no image")
    return str(path)


def save_captioned(
    folder: Path, *, sizes: Sequence[tuple[int, int]], others: Callable[[int], dict[str, Any]] = lambda i: {}
) -> str:
    """Write pictures in two classes, one of them without a caption, and a broken one; `others` gives more columns."""
    lines = []
    for i, size in enumerate(sizes):
        name = f"{'cat' if i < 4 else 'dog'}/{i} é.png"
        (folder / name).parent.mkdir(exist_ok=True)
        picture(i, size=size).save(folder / name)
        lines.append({"file_name": name, "caption": f"nº {i}" if i != 2 else None, "rating": i / 2, **others(i)})
    (folder / "cat" / "broken.png").write_bytes(b"no image")
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(folder)


def options(vae: str, data: str, output: Path | str, **changes: Any) -> EncodeOptions:
    """Return options of a small encode in float32; `changes` are fields."""
    values: dict[str, Any] = {"resolution": RESOLUTION, "shard_size": 4, "batch_size": 3, "num_workers": 0}
    values |= {"mixed_precision": "no", "dtype": "float32"}
    return EncodeOptions(vae=vae, data=data, output=str(output), **{**values, **changes})


def moments(vae: str, image: Image.Image) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of a picture of the final size, by diffusers itself."""
    pixels = torch.from_numpy(np.asarray(image).reshape(image.height, image.width, -1).astype(np.float32))
    images = (pixels / 127.5 - 1).permute(2, 0, 1)[None]
    autoencoder = AutoencoderKL.from_pretrained(vae).eval()
    with torch.no_grad():
        posterior = autoencoder.encode(images).latent_dist
    return posterior.mean[0], posterior.std[0]


def square(image: Image.Image, *, side: int = RESOLUTION) -> Image.Image:
    """Return the middle square of a picture, in whole pixels of the resized picture, written plainly."""
    short, long = min(image.size), max(image.size)
    spare = int((long - short) / (short / side))
    start = spare // 2 * short / side
    box = (start, 0, start + short, short) if image.width > image.height else (0, start, short, start + short)
    return image.resize((side, side), Image.Resampling.BICUBIC, box=box)


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder by name, the hidden ones too."""
    return {name: (folder / name).read_bytes() for name in os.listdir(folder)}


def _encode(options: EncodeOptions, most_shards: int | None) -> EncodeSummary:
    torch.set_num_threads(1)
    if most_shards is not None:
        _wait_after(most_shards)
    return encode(options)


def _wait_after(shards: int) -> None:
    """Have this process write so many shards and then wait to be killed."""
    written, counter = ShardWork.written, itertools.count(1)

    def counted(work: ShardWork, record: ShardRecord) -> None:
        written(work, record)
        if next(counter) == shards:
            threading.Event().wait()

    mock.patch.object(ShardWork, "written", counted).start()


def start_encodes(options: EncodeOptions, *, count: int, most_shards: int | None = None) -> list[ForkServerProcess]:
    """Start processes that encode into one folder, each with one thread; `most_shards` is for those to be killed."""
    processes = [forking().Process(target=_encode, args=(options, most_shards)) for _ in range(count)]
    for process in processes:
        process.start()
    return processes


def wait_for_shards(folder: Path, count: int) -> None:
    """Wait until there are so many whole shards."""
    until = time.monotonic() + SECONDS / 3
    while len(list(folder.glob("latents-*.json"))) < count:
        assert time.monotonic() < until, sorted(os.listdir(folder))
        time.sleep(random.random() / 200)


def finish(processes: list[ForkServerProcess]) -> list[int | None]:
    """Wait for processes; return their exit codes, none for those that hang, which are killed."""
    until = time.monotonic() + SECONDS
    codes = []
    for process in processes:
        process.join(timeout=max(0.0, until - time.monotonic()))
        codes.append(process.exitcode)
        if process.is_alive():
            process.kill()
            process.join()
    return codes
