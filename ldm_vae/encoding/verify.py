"""`ldm-vae latents verify`: is a folder of latents whole, and are its latents those of the images?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm_vae.audio.collection import SoundCollection, open_sounds
from ldm_vae.config.commands.latents import LatentsVerifyOptions
from ldm_vae.config.rules import require
from ldm_vae.encoding.buckets import ImageKey
from ldm_vae.encoding.device_jpegs import DeviceJpegs, require_cuda
from ldm_vae.encoding.plan import make_preprocessing
from ldm_vae.encoding.preprocessing import ImageBatch, collate, encoding_images
from ldm_vae.images.collection import ImageCollection, open_collection
from ldm_vae.latents.check import Problem, check_folder
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.latents.index import read_index
from ldm_vae.latents.laid_out import LaidOutStore, open_output_store
from ldm_vae.latents.shard_table import ShardTable
from ldm_vae.models.fingerprint import fingerprint
from ldm_vae.models.inference import InferenceAutoencoder
from ldm_vae.models.load import load_vae
from ldm_vae.system.progress import progress
from ldm_vae.system.ray_cluster import ray_cluster
from ldm_vae.system.ray_map import RayMap
from ldm_vae.system.telling import counted
from ldm_vae.system.text import printable

DEEP_IMAGES = 16
TOLERANCE = {"float32": 1e-3, "bf16": 3e-2}
"""Largest relative error of latents encoded again, by the encoder's precision: another device, or another batch, sums
in another order."""
STORED = {"float32": 0.0, "float16": 1e-3, "bfloat16": 4e-3}
"""What rounding adds to it, by the type of the stored latents."""


class LatentsDamaged(ValueError):
    """A folder of latents is not what it should be."""


@dataclass(kw_only=True)
class VerifyReport:
    """What was verified; there were no problems."""

    folder: str
    """Path or address."""
    num_rows: int
    num_shards: int
    deep_images: int
    """Images, or sounds, encoded again."""
    largest_error: float
    """Largest error of these: the root of the summed squared differences, relative to that of the latents."""
    noun: str = "image"
    """What was encoded: images or sounds."""

    def __str__(self) -> str:
        text = f"{self.folder}: {self.num_rows:,} latents in {counted(self.num_shards, 'shard')}, all whole"
        if self.deep_images:
            text += f"; {counted(self.deep_images, self.noun)} encoded again agree to {self.largest_error:.1e}"
        return text


def verify(options: LatentsVerifyOptions) -> VerifyReport:
    """Check every shard against its digest and, with `deep`, encode a random few images again.

    Raises:
        LatentsDamaged: There are problems; the message lists all.
        ValueError: The folder is no output of `ldm-vae encode`, or the VAE or data for `deep` don't belong to it.
    """
    store = open_output_store(options.latents)
    require(
        not (options.deep and isinstance(store, LaidOutStore)),
        f"<deep> compares rows, which aren't read of <latents> {options.latents}, in another trainer's layout",
    )
    folder = store.place().rstrip("/")
    with ExitStack() as stack:
        each = None
        if options.engine == "ray":
            each = RayMap(stack.enter_context(ray_cluster(options.ray.address))).each
        bar = stack.enter_context(progress(None, what="verify", unit="shard"))
        problems = check_folder(store, on_shard=bar.update, each=each)
    _raise(folder, problems)
    index = read_index(store)
    errors = []
    if options.deep and index["num_rows"]:
        errors = _encode_again(LatentDataset(store, normalize="none"), options, problems)
        _raise(folder, problems)
    return VerifyReport(
        folder=folder,
        num_rows=index["num_rows"],
        num_shards=len(ShardTable.of(index, store)),
        deep_images=len(errors),
        largest_error=max(errors, default=0.0),
        noun="sound" if "mel_frames" in index["preprocessing"] else "image",
    )


def _raise(folder: str, problems: list[Problem]) -> None:
    if problems:
        counts = ", ".join(f"{count} {kind}" for kind, count in Counter(problem.kind for problem in problems).items())
        lines = "; ".join(str(problem) for problem in problems)
        surplus = [problem.file for problem in problems if problem.is_surplus]
        remove = f"Remove {', '.join(surplus)}. " if surplus else ""
        mend = "Start the same encode again: it mends this" if len(surplus) < len(problems) else ""
        raise LatentsDamaged(f"{folder}: {counts}. {lines}. {remove}{mend}".rstrip())


def _encode_again(dataset: LatentDataset, options: LatentsVerifyOptions, problems: list[Problem]) -> list[float]:
    """Encode a random few images, append what doesn't agree to `problems`, and return the relative errors."""
    assert options.vae is not None
    assert options.data is not None
    index = dataset.index
    require("names" in index["data"], "<deep> needs random access to the images, which a streamed source hasn't")
    family = load_vae(options.vae, **options.vae_arguments).family
    require(
        fingerprint(family).whole == index["vae"]["fingerprint"],
        f"<vae> {options.vae} is not the autoencoder that {options.latents} was encoded with",
    )
    collection = _opened(options, index["preprocessing"])
    require(
        len(collection) == index["data"]["num_images"],
        f"<data> {options.data} has {counted(len(collection), collection.noun)}; {options.latents} was made "
        f"from {index['data']['num_images']:,}",
    )
    precision = index["preprocessing"]["precision"]
    tolerance = TOLERANCE[precision] + STORED.get(index["dtype"], 0.02)
    encoder = InferenceAutoencoder(family, bf16=precision == "bf16")
    leave_jpegs = "jpeg_decoder" in index["preprocessing"]
    jpegs = _opened_decoder(encoder, options) if leave_jpegs else None
    preprocessing = make_preprocessing(
        family,
        mode=index["mode"],
        seed=index["seed"] or 0,
        crops=index["preprocessing"].get("crops", 1),
        leave_jpegs=leave_jpegs,
    )
    images = encoding_images(collection, preprocessing=preprocessing, detect_changes="off")
    factor = family.spatial_factor
    count = min(DEEP_IMAGES, len(dataset))
    errors = []
    for row in sorted(np.random.default_rng().choice(len(dataset), size=count, replace=False).tolist()):
        line, (_, h, w) = dataset.row(row), dataset.shape(row)
        key = ImageKey(sample=line["sample"], image=line.get("image", line["sample"]), size=(w * factor, h * factor))
        image = collate([images[key]])
        image.size = key.size
        if jpegs is not None:
            image = jpegs.decoded(image)
        error = _relative_error(encoder, image, dataset.moments(row))
        errors.append(error)
        if image.rows[0].source != line["source"] or not error <= tolerance:
            detail = f"row {row} is not what {printable(line['source'])} encodes to (relative error {error:.2g})"
            problems.append(Problem(kind="damaged", file=line["shard"], detail=detail))
    return errors


def _opened_decoder(encoder: InferenceAutoencoder, options: LatentsVerifyOptions) -> DeviceJpegs:
    """Return what decodes JPEG files as for an output whose plan leaves them to nvJPEG."""
    require_cuda(encoder.device.type, asked=f"<deep> decodes as <latents> {options.latents} was, by nvJPEG")
    return DeviceJpegs(encoder.device, channels=encoder.family.in_channels, rules=options.reading_rules())


def _opened(options: LatentsVerifyOptions, preprocessing: Mapping[str, Any]) -> ImageCollection | SoundCollection:
    """Open the images or sounds, where no range is given in that which they were encoded in."""
    assert options.data is not None
    if "mel_frames" in preprocessing:
        return open_sounds(options.data, split=options.split, rules=options)
    rules = options.reading_rules()
    if "value_range" in preprocessing and not options.value_range:
        rules = replace(rules, **{name: preprocessing[name] for name in ("value_range", "clip_values")})
    return open_collection(options.data, split=options.split, image_column=options.image_column, rules=rules)


def _relative_error(encoder: InferenceAutoencoder, image: ImageBatch, stored: dict[str, Tensor]) -> float:
    """Compare a batch of one image's latents with those stored; not finite where it can't be read any more."""
    if image.pixels is None:
        return float("inf")
    latent = encoder.encode_latent(encoder.to_images(image.pixels))
    again = latent.stored
    if "latents" in stored:
        again = {"latents": latent.mean}
        if image.noise is not None:
            again["latents"] = latent.mean + latent.stored["std"] * image.noise.to(encoder.device)
    elif "indices" in stored:
        # Near the border of two codes rounding decides: what counts is how many places differ.
        return float((again["indices"][0].cpu() != stored["indices"].long()).float().mean())
    differences = [
        (again[name][0].cpu() - stored[name].float()).norm() / stored[name].float().norm() for name in again
    ]
    return float(torch.stack(differences).max())
