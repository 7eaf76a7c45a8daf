"""How fast training images come from a stream at an S3 server of this machine, beside one from files here.

    python scripts/bench_streams.py [--images 2000] [--side 256] [--rounds 3]

JPEG files of 320x240 pixels lie in four tar files and in four parquet files. What is timed is what a training process
does before its batches: reading, decoding, cropping, with two threads. The memory is what the process grew by while it
read from the server. It needs `moto[server]` with `ldm-vae[s3]`; the server takes a core of its own.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import statistics
import tarfile
import tempfile
import time
from itertools import islice
from pathlib import Path

import datasets
import fsspec
from local_s3 import s3_server
from stress_ray import make_inputs

from ldm_vae.images.streaming import StreamingImages, open_stream
from ldm_vae.images.training import Augmentation

FILES = 4


def write_files(folder: Path, photos: list[Path]) -> None:
    """Write the pictures into tar and parquet files."""
    for kind in ("tar", "parquet"):
        (folder / kind).mkdir()
        for file in range(FILES):
            contents = [path.read_bytes() for path in photos[file::FILES]]
            if kind == "tar":
                with tarfile.open(folder / kind / f"{file}.tar", "w") as tar:
                    for number, content in enumerate(contents):
                        member = tarfile.TarInfo(f"{number:06d}.jpg")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
            else:
                rows = {"image": [{"bytes": content, "path": None} for content in contents]}
                features = datasets.Features({"image": datasets.Image()})
                table = datasets.Dataset.from_dict(rows, features=features)
                table.to_parquet(folder / kind / f"{file}.parquet", batch_size=100)


def images_a_second(source: str, *, images: int, side: int) -> float:
    augmentation = Augmentation(channels=3, resolution=side, latent_channels=4, spatial_factor=8, seed=0)
    samples = StreamingImages(open_stream(source), augmentation).samples(start=0, num_threads=2)
    next(samples)
    start = time.perf_counter()
    count = sum(1 for _ in islice(samples, images - 1))
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, s3_server() as server:
        os.environ |= server
        folder = Path(temporary)
        make_inputs(folder, images=options.images)
        write_files(folder, sorted((folder / "photos").iterdir()))
        for kind in ("tar", "parquet"):
            fsspec.filesystem("s3").put(str(folder / kind), f"bucket/{kind}", recursive=True)
            rates: dict[str, list[float]] = {"here": [], "s3": []}
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for _ in range(options.rounds):
                for place, root in (("here", temporary), ("s3", "s3://bucket")):
                    rate = images_a_second(f"{root}/{kind}", images=options.images, side=options.side)
                    rates[place].append(rate)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            here, there = (statistics.median(rates[place]) for place in ("here", "s3"))
            size = sum(path.stat().st_size for path in (folder / kind).iterdir()) / 1e6
            rate = f"{here:.0f} images/s from files, {there:.0f} from S3, ratio {there / here:.2f}"
            print(f"{kind}, {size:.0f} MB: {rate}; memory grew by {grown:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
