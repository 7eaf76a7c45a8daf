"""What an output of `ldm-vae encode` is, stated from the options, the VAE and the collection."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ldm_vae.audio.collection import SoundCollection
from ldm_vae.audio.datasets import check_mels
from ldm_vae.audio.mels import MEL_RANGE
from ldm_vae.config.commands.encode import EncodeOptions
from ldm_vae.config.data import MEL_BINS
from ldm_vae.config.rules import require, require_divides
from ldm_vae.encoding.buckets import bucket_sizes
from ldm_vae.encoding.columns import find_columns
from ldm_vae.encoding.preprocessing import Preprocessing
from ldm_vae.images.buckets import nearest_bucket
from ldm_vae.images.collection import ImageCollection
from ldm_vae.images.streaming import ImageStream
from ldm_vae.images.transforms import Size
from ldm_vae.latents.layouts.kohya_buckets import kohya_bucket, kohya_bucket_sizes
from ldm_vae.latents.shards import Plan
from ldm_vae.models.families.family import Family
from ldm_vae.models.fingerprint import fingerprint
from ldm_vae.models.load import LoadedVae


def latents_mode(options: EncodeOptions, *, family: Family) -> str:
    """Return what is stored: what was asked for, or what the bottleneck gives.

    Raises:
        ValueError: The bottleneck doesn't give what was asked for.
    """
    bottleneck = family.bottleneck
    require(
        options.mode is None or options.mode in bottleneck.modes,
        f"<mode> is {options.mode}, but the latents of <vae> {options.vae} are {bottleneck.name}; take "
        f"{' or '.join(bottleneck.modes)}, or leave it out",
    )
    return options.mode or bottleneck.modes[0]


def make_plan(
    options: EncodeOptions, *, images: ImageCollection | ImageStream | SoundCollection, vae: LoadedVae, bf16: bool
) -> Plan:
    """State what an output with these options is."""
    family = vae.family
    mode = latents_mode(options, family=family)
    digests = fingerprint(family)
    return Plan(
        vae={
            "fingerprint": digests.whole,
            "encoder": digests.encoder,
            "spatial_factor": family.spatial_factor,
            **family.scaling,
            **({"assumed": vae.assumed} if vae.assumed else {}),
        },
        preprocessing=_preprocessing(options, channels=family.in_channels, bf16=bf16),
        mode=mode,
        dtype=options.dtype if mode != "indices" else index_dtype(family.codebook_size or 0),
        flip=options.flip,
        seed=options.seed if mode == "sample" else None,
        shard_size=options.shard_size,
        data=_data(options, images=images),
        layout=_layout(options, images=images),
    )


def _preprocessing(options: EncodeOptions, *, channels: int, bf16: bool) -> dict[str, Any]:
    """State what is done to images, or sounds, before they are encoded, and in what precision they are."""
    stated: dict[str, Any] = {
        "channels": channels,
        "resolution": options.resolution,
        "crop": "short side to the resolution, centre square",
        "filter": "bicubic, antialiased",
        "range": [-1, 1],
        "precision": "bf16" if bf16 else "float32",
    }
    if options.jpeg_decoder != "pillow":
        stated["jpeg_decoder"] = options.jpeg_decoder
    if options.reads_numbers:
        stated |= {"value_range": options.value_range, "clip_values": options.clip_values}
    if options.crops > 1:
        stated |= {"crop": "short side to the resolution, squares spread along the long side", "crops": options.crops}
    if options.buckets:
        stated["crop"] = "centre, in the bucket of the nearest aspect ratio"
        stated |= {"bucket_set": options.bucket_set, "bucket_step": options.bucket_step}
        if options.bucket_set == "area":
            stated["bucket_max_aspect"] = options.bucket_max_aspect
        else:
            stated |= {"min_bucket_reso": options.min_bucket_reso, "max_bucket_reso": options.max_bucket_reso}
    if options.mel_frames is not None:
        for name in ("resolution", "filter"):
            stated.pop(name)
        stated |= {
            "mel_frames": options.mel_frames,
            "crop": "the middle of a longer sound, silence behind a shorter one",
            "range": list(MEL_RANGE),
        }
    return stated


def _data(options: EncodeOptions, *, images: ImageCollection | ImageStream | SoundCollection) -> dict[str, Any]:
    """State which images or sounds they are."""
    if isinstance(images, ImageStream):
        return {"num_files": images.dataset.num_shards, "label_names": images.label_names}
    return {
        "num_images": len(images),
        "names": images.names_digest(),
        "changes": options.detect_changes,
        "label_names": None if isinstance(images, SoundCollection) else images.label_names,
    }


def _layout(
    options: EncodeOptions, *, images: ImageCollection | ImageStream | SoundCollection
) -> dict[str, Any] | None:
    """State the layout that was asked for, if it isn't this format's own, and what columns its files have."""
    if options.layout == "safetensors":
        return None
    assert not isinstance(images, SoundCollection), "options refuse other layouts of sounds"
    return {"name": options.layout, "columns": find_columns(images).to_json()}


def index_dtype(num_codes: int) -> str:
    """Return the smallest type of integers that numbers of codes fit in."""
    return "uint8" if num_codes <= 1 << 8 else "uint16" if num_codes <= 1 << 16 else "int32"


def make_preprocessing(family: Family, *, mode: str, seed: int, crops: int, leave_jpegs: bool) -> Preprocessing:
    """State what the encoder takes."""
    return Preprocessing(
        channels=family.in_channels,
        spatial_factor=family.spatial_factor,
        noise_channels=family.latent_channels if mode == "sample" else None,
        seed=seed,
        crops=crops,
        leave_jpegs=leave_jpegs,
    )


def stored_shape(size: Size, *, family: Family, mode: str) -> tuple[int, int, int]:
    """Shape of what is stored of images of (width, height) pixels: [c, h, w], or [1, h, w] for numbers of codes."""
    factor = family.spatial_factor
    return 1 if mode == "indices" else family.latent_channels, size[1] // factor, size[0] // factor


def square_size(options: EncodeOptions) -> Size:
    """Return the (width, height) that all images get where there are no buckets: squares, or the mels of sounds."""
    if options.mel_frames is not None:
        return MEL_BINS, options.mel_frames
    return options.resolution, options.resolution


def check_sizes(options: EncodeOptions, *, family: Family) -> None:
    """Raise `FieldError` unless the VAE's factor, times its patches, divides what images are resized to."""
    factor = family.image_multiple
    if options.mel_frames is not None:
        check_mels(options.vae, family, frames=options.mel_frames)
        return
    require_divides(factor, options.resolution, name="resolution", whose="the VAE's factor")
    if options.buckets:
        require_divides(factor, options.bucket_step, name="bucket_step", whose="the VAE's factor")


def bucket_choice(options: EncodeOptions) -> Callable[[Size], Size]:
    """Return what puts a picture's size into one of the buckets."""
    step = options.bucket_step
    if options.bucket_set == "area":
        sizes = bucket_sizes(options.resolution, step=step, max_aspect=options.bucket_max_aspect)
        return functools.partial(nearest_bucket, sizes=sizes)
    sizes = kohya_bucket_sizes(
        options.resolution, step=step, smallest=options.min_bucket_reso, largest=options.max_bucket_reso
    )
    return functools.partial(kohya_bucket, sizes=sizes)
