"""What an output of very many shards costs its readers and writers; docs/scale.md quotes it.

    python scripts/simulate_shards.py --shards 1000000 --records 5000

An index of `--shards` shards is written, without the shards, and opened: from a folder by a process of its own, and
from memory://. `--records` real records of 1,000 rows each are written, listed and put together. Everything is made in
a temporary folder and removed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ldm_vae.encoding.buckets import Numbering
from ldm_vae.latents import shard_table
from ldm_vae.latents.index import write_index
from ldm_vae.latents.sealed import SEAL, dump_json, seal, unseal
from ldm_vae.latents.shard_table import ShardEntries
from ldm_vae.latents.shards import INDEX, SHARDS, Plan, Row, ShardRecord, read_record, shard_stem
from ldm_vae.latents.statistics import ChannelMoments
from ldm_vae.latents.summaries import read_summary
from ldm_vae.system.leases import Leases
from ldm_vae.system.places import open_store
from ldm_vae.system.store import LocalStore, Store

ROWS = 1000
VAE = {"fingerprint": "f", "encoder": "e", "scaling_factor": 0.2, "shift_factor": 0.0, "latents_mean": None}
VAE |= {"latents_std": None}
OPEN = """
import re, sys, time
import ldm_vae.latents.dataset as dataset
def peak():  # of this program alone: what getrusage tells, it has from the one that started it
    return re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]
before, start = peak(), time.perf_counter()
rows = len(dataset.LatentDataset(sys.argv[1]))
seconds = time.perf_counter() - start
print(rows, seconds, before, peak())
"""


def plan() -> Plan:
    return Plan(vae=VAE, preprocessing={}, mode="moments", dtype="float16", flip=False, seed=None, shard_size=ROWS,
                data={"num_images": 0})  # fmt: skip


def write_large_index(store: Store, *, shards: int) -> None:
    entries = ShardEntries(shards)
    entries.array["file"], entries.array["part"] = np.arange(shards), -1
    entries.array["count"], entries.array["shape"], entries.array["size"] = ROWS, (4, 32, 32), 16_500_000
    entries.array["sha256"] = np.random.default_rng(0).integers(0, 256, (shards, 32))
    entries._filled = shards
    content = entries.to_bytes()
    store.write_whole(SHARDS, content)
    index = {**plan().to_json(), "num_rows": shards * ROWS, "num_skipped": 0, "rounding_error": {},
             "files": {SHARDS: hashlib.sha256(content).hexdigest()}, "shards": entries.for_index(),
             "stats": {"count": shards, "mean": [0.0] * 4, "std": [1.0] * 4, "sample_std": [1.0] * 4}}  # fmt: skip
    store.write_whole(INDEX, seal(index, indent=1))


def opening(place: str) -> dict[str, float]:
    """Open in a process of its own; for memory:// in this one, since no other sees it."""
    if place.startswith("memory://"):
        from ldm_vae.latents.dataset import LatentDataset

        start = time.perf_counter()
        LatentDataset(place)
        return {"seconds": time.perf_counter() - start}
    line = subprocess.run([sys.executable, "-c", OPEN, place], check=True, capture_output=True, text=True).stdout
    _, seconds, before, after = map(float, line.split())
    return {"seconds": seconds, "MiB_before": before / 1024, "MiB_after": after / 1024}


def records(folder: Path, *, count: int) -> dict[str, float]:
    """Write records of 1,000 rows, list them, claim them, and make an index of them."""
    store, figures = LocalStore(folder), {}
    rows = [Row(sample=i, image=i, source=f"train/n01440764/n01440764_{i:07d}.jpg", stamp=[123456, 10**18 + i],
                size=[500, 375], label=7) for i in range(ROWS)]  # fmt: skip
    moments = ChannelMoments(count=1, mean=[0.0] * 4, deviation=[1.0] * 4, posterior_variance=[1.0] * 4)
    record = ShardRecord(stem="", plan=plan().digest, size=1, sha256="00" * 32, shape=[4, 32, 32], rows=rows,
                         moments=moments, rounding={})  # fmt: skip
    folder.mkdir()
    record.stem = "STEM"
    like = dump_json(unseal(record.to_bytes()))
    for shard in range(count):
        stem = shard_stem(shard)
        (folder / f"{stem}.safetensors").write_bytes(b"\0")
        (folder / f"{stem}.json").write_bytes(sealed(like.replace(b"STEM", stem.encode())))
    figures["bytes a record"] = (folder / f"{stem}.json").stat().st_size
    start = time.perf_counter()
    store.names()
    figures["names listed a second"] = 2 * count / (time.perf_counter() - start)
    shard_table.MANY_SHARDS = 0
    start = time.perf_counter()
    write_index(store, plan=plan(), stems=[shard_stem(shard) for shard in range(count)])
    figures["shards indexed a second"] = count / (time.perf_counter() - start)
    figures["records read a second, with their rows"] = reading(store, read_record, count=count)
    figures["summaries read a second"] = reading(store, read_summary, count=count)
    start = time.perf_counter()
    with Leases(store, seconds=1000) as leases:
        for shard in range(count):
            leases.claim(shard_stem(shard))
        figures["claims a second"] = count / (time.perf_counter() - start)
    return figures


def sealed(content: bytes) -> bytes:
    """Return one line of JSON as `seal` writes it, without reading it."""
    return content[:-2] + f',"{SEAL}":"{hashlib.sha256(content).hexdigest()}"}}\n'.encode()


def reading(store: Store, read: Callable[..., Any], *, count: int) -> float:
    """Read records as processes of an encode do; return how many a second."""
    stems = [shard_stem(shard) for shard in range(min(count, 1000))]
    start = time.perf_counter()
    found = list(store.each(lambda stem: read(store, stem=stem, plan_digest=plan().digest) is None, stems))
    assert not any(found)
    return len(stems) / (time.perf_counter() - start)


def numbering(shards: int) -> dict[str, float]:
    """Number the shards as every process of an encode does."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    numbered = Numbering([((256, 256), range(shards * ROWS))], shard_size=ROWS)
    left = dict.fromkeys(numbered.stems)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": time.perf_counter() - start, "MiB": (after - before) / 1024, "shards": len(left)}


def tell(name: str, value: object) -> None:
    print(f"{name}: {json.dumps(value)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=1_000_000)
    parser.add_argument("--records", type=int, default=5000)
    options = parser.parse_args()
    tell("shards", options.shards)
    tell("rows a shard", ROWS)
    tell("numbering", numbering(options.shards))
    with tempfile.TemporaryDirectory() as temporary:
        for place in (f"{temporary}/large", "memory://simulated"):
            write_large_index(open_store(place), shards=options.shards)
            tell(f"opening {place.replace(temporary, '')}", opening(place))
        tell("bytes", {name: Path(temporary, "large", name).stat().st_size for name in (INDEX, SHARDS)})
        tell("records", records(Path(temporary, "records"), count=options.records))


if __name__ == "__main__":
    main()
