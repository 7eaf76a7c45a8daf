"""A folder of latents as the real writer writes it, with unreadable images and an empty shard."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ldm_vae.encoding.writer import EncodedBatch, ShardWriter
from ldm_vae.latents.index import write_index
from ldm_vae.latents.shards import Plan, Row, shard_stem

SHAPE = (3, 4, 6)
SKIPPED = {4, 8, 9, 10, 11}
NUM_IMAGES, SHARD_SIZE = 15, 4
VAE = {"fingerprint": "f", "encoder": "e", "scaling_factor": 0.5, "shift_factor": 0.25}
VAE |= {"latents_mean": None, "latents_std": None}


def make_plan(**changes: object) -> Plan:
    values = {"vae": VAE, "preprocessing": {}, "mode": "moments", "dtype": "float16", "flip": True, "seed": None}
    values |= {"shard_size": SHARD_SIZE, "data": {"num_images": NUM_IMAGES}}
    return Plan(**{**values, **changes})


def write(folder: Path, plan: Plan) -> dict[str, Tensor]:
    """Write a collection with unreadable images, shard 2 being empty; return the exact values by row."""
    generator = torch.Generator().manual_seed(0)
    readable = [i for i in range(NUM_IMAGES) if i not in SKIPPED]
    names = ["mean", "std", "mean_flip", "std_flip"] if plan.mode == "moments" else ["latents", "latents_flip"]
    exact = {name: torch.randn(len(readable), *SHAPE, generator=generator) * 3 + 1 for name in names}
    with ShardWriter(folder, plan=plan, on_written=lambda record: None) as writer:
        for start in range(0, NUM_IMAGES, 2):
            images = range(start, min(start + 2, NUM_IMAGES))
            rows = [
                Row(sample=i, image=i, source=f"a {i}.jpg", label=i % 3, columns={"caption": f"a é {i}"})
                for i in images
            ]
            for row in rows:
                row.reason = "broken" if row.sample in SKIPPED else None
            at = [readable.index(i) for i in images if i in readable]
            shard, offset = divmod(start, SHARD_SIZE)
            writer.add(
                EncodedBatch(
                    stem=shard_stem(shard),
                    rows=rows,
                    tensors={name: values[at] for name, values in exact.items()} if at else {},
                    shape=SHAPE,
                    last=offset + 2 >= SHARD_SIZE or start + 2 >= NUM_IMAGES,
                )
            )
    write_index(folder, plan=plan, stems=[shard_stem(shard) for shard in range(4)])
    return exact
