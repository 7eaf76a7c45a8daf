"""What an output of `ldm-vae encode` is, stated from the options, the VAE and the collection."""

from __future__ import annotations

import hashlib
from typing import Any

from ldm_vae.config.commands.encode import EncodeOptions
from ldm_vae.config.rules import require_divides
from ldm_vae.encoding.buckets import Size
from ldm_vae.encoding.preprocessing import Preprocessing
from ldm_vae.images.collection import ImageCollection
from ldm_vae.images.streaming import ImageStream
from ldm_vae.latents.shards import Plan
from ldm_vae.models.families.family import Family
from ldm_vae.models.fingerprint import fingerprint
from ldm_vae.models.load import LoadedVae

_NAMES_AT_ONCE = 10_000


def make_plan(options: EncodeOptions, *, images: ImageCollection | ImageStream, vae: LoadedVae, bf16: bool) -> Plan:
    """State what an output with these options is."""
    family = vae.family
    digests = fingerprint(family)
    preprocessing: dict[str, Any] = {
        "channels": family.in_channels,
        "resolution": options.resolution,
        "crop": "short side to the resolution, centre square",
        "filter": "bicubic, antialiased",
        "range": [-1, 1],
        "precision": "bf16" if bf16 else "float32",
    }
    if options.buckets:
        preprocessing["crop"] = "centre, in the bucket of the nearest aspect ratio"
        preprocessing |= {"bucket_set": options.bucket_set, "bucket_step": options.bucket_step}
        if options.bucket_set == "area":
            preprocessing["bucket_max_aspect"] = options.bucket_max_aspect
        else:
            preprocessing |= {"min_bucket_reso": options.min_bucket_reso, "max_bucket_reso": options.max_bucket_reso}
    if isinstance(images, ImageStream):
        data: dict[str, Any] = {"num_files": images.dataset.num_shards, "label_names": images.label_names}
    else:
        data = {"num_images": len(images), "names": _digest_names(images), "changes": options.detect_changes}
        data |= {"label_names": images.label_names}
    return Plan(
        vae={
            "fingerprint": digests.whole,
            "encoder": digests.encoder,
            "spatial_factor": family.spatial_factor,
            **family.scaling,
            **({"assumed": vae.assumed} if vae.assumed else {}),
        },
        preprocessing=preprocessing,
        mode=options.mode,
        dtype=options.dtype,
        flip=options.flip,
        seed=options.seed if options.mode == "sample" else None,
        shard_size=options.shard_size,
        data=data,
    )


def make_preprocessing(family: Family, *, mode: str, seed: int) -> Preprocessing:
    """State what the encoder takes."""
    return Preprocessing(
        channels=family.in_channels,
        spatial_factor=family.spatial_factor,
        noise_channels=family.latent_channels if mode == "sample" else None,
        seed=seed,
    )


def latent_shape(size: Size, *, family: Family) -> tuple[int, int, int]:
    """Shape [c, h, w] of the latents of images of (width, height) pixels."""
    factor = family.spatial_factor
    return family.latent_channels, size[1] // factor, size[0] // factor


def check_sizes(options: EncodeOptions, *, family: Family) -> None:
    """Raise `FieldError` unless the VAE's factor divides what images are resized to."""
    factor = family.spatial_factor
    require_divides(factor, options.resolution, name="resolution", whose="the VAE's factor")
    if options.buckets:
        require_divides(factor, options.bucket_step, name="bucket_step", whose="the VAE's factor")


def _digest_names(collection: ImageCollection) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(collection), _NAMES_AT_ONCE):
        for name in collection.names(start, min(start + _NAMES_AT_ONCE, len(collection))):
            digest.update(name.encode(errors="backslashreplace") + b"\0")
    return digest.hexdigest()
