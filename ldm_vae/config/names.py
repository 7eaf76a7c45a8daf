"""The words that settings take, each set of them once; and the nearest word to a mistyped one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Literal

DType = Literal["float32", "float16", "bfloat16"]
MixedPrecision = Literal["auto", "no", "bf16"]
WhenUseful = Literal["auto", "on", "off"]
Weights = Literal["ema", "raw"]
FileLayout = Literal["diffusers", "ldm"]
PipelineKind = Literal["sd", "sdxl", "sd3", "flux"]
LatentsLayout = Literal["lightningdit", "kohya", "parquet", "webdataset", "mds"]
EncodeLayout = Literal["safetensors", "lightningdit", "mds", "parquet", "webdataset"]
LatentsMode = Literal["moments", "mean", "sample", "indices"]
Engine = Literal["local", "ray"]
BucketSet = Literal["area", "sd_scripts"]
JpegDecoder = Literal["pillow", "nvjpeg"]
DetectChanges = Literal["mtime", "digest", "off"]
WhenChanged = Literal["refuse", "accept"]
WhenDead = Literal["stop", "skip"]
DecodedFormat = Literal["png", "npy", "wav"]
Crop = Literal["random_resized", "random", "center"]
Init = Literal["torch", "quiet"]
Posterior = Literal["learnt", "fixed", "floor"]
LatentNoise = Literal["off", "interpolative", "additive", "relative"]
ModelFamily = Literal["kl", "flux2", "vq", "tiny", "dc"]
BottleneckKind = Literal["gaussian", "deterministic", "vq", "fsq"]
PixelDistance = Literal["l1", "l2"]
Likelihood = Literal["none", "gaussian", "laplace", "logistic"]
Lpips = Literal["lpips_vgg", "lpips_alex", "lpips_squeeze"]
VisionNetwork = Literal["efficientnet_lite0", "dinov2", "dinov3", "siglip2"]
Perceptual = Literal["none", Lpips, VisionNetwork]
PerceptualChoice = Literal["auto", "none", Lpips, "efficientnet_lite0"]
Alignment = Literal["none", VisionNetwork]
Discriminator = Literal["patch", VisionNetwork]
DiscriminatorLoss = Literal["hinge", "vanilla"]
DiscriminatorNorm = Literal["group", "batch"]
AdaptiveWeight = Literal["lagged", "same_step", "off"]
Optimizer = Literal["adamw", "muon"]
Schedule = Literal["constant", "constant_with_warmup", "constant_with_decay", "linear", "cosine", "polynomial"]
CheckpointingLevel = Literal["none", "blocks", "full"]
BestMetric = Literal["auto", "psnr", "ssim", "perceptual"]
AnomalyScore = Literal[
    "auto", "pixel", "pixel_peak", "perceptual", "perceptual_peak", "negative_elbo", "complexity_corrected"
]
Compressor = Literal["png", "webp"]
ProbeBudget = Literal["small", "standard", "full"]
Normalisation = Literal["channel", "scaling"]
SampleMethod = Literal["auto", "prior", "gaussian", "codes", "diffusion"]
Covariance = Literal["full", "channel"]
LatentPath = Literal["linear", "spherical"]
LatentPaths = Literal["both", LatentPath]
DirectionKind = Literal["channel", "map"]
LatentDistance = Literal["euclidean", "cosine"]
Tracker = Literal["none", "tensorboard", "wandb"]


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known name that a mistyped word is most like, or None where none is alike."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return close[0] if close else None


def did_you_mean(word: str, known: Iterable[str], *, otherwise: str = "") -> str:
    """Return the end of a message about an unknown word: the nearest known name, else all of them.

    Args:
        word: What was typed.
        known: The names there are.
        otherwise: What the names are called, such as `keys`, where none is alike and all are listed. If it is empty,
            none are listed.
    """
    known = list(known)
    if close := nearest(word, known):
        return f"; did you mean '{close}'?"
    return f"; {otherwise}: {', '.join(known)}" if otherwise else ""
