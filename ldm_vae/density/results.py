"""Bounds over a set of pictures, with their spread and how they were measured."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ldm_vae.density.autoencoder import DensityModel
from ldm_vae.density.measure import PictureDensity
from ldm_vae.system.float64 import float64_tensor
from ldm_vae.system.markdown import markdown_table, markdown_text
from ldm_vae.system.pixels import LEVELS_PER_UNIT

PROTOCOL_VERSION = 1
"""Raised whenever a figure changes its meaning under an unchanged name."""
_UNIT = "bits/dim"
_LIKELIHOODS = {
    "gaussian": "normal density",
    "laplace": "Laplace density",
    "logistic": "discretised logistic, the probability of a level (Salimans et al. 2017)",
}
_DEQUANTISED = (
    "of the level with uniform noise of its width, one draw a picture, times that width, 2/255 (Theis et al. 2016)"
)


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A figure over a set of pictures."""

    value: float
    """Mean over the pictures."""
    standard_error: float | None
    """Of that mean: the standard deviation over pictures by the root of their number; None for one picture."""
    unit: str
    protocol: str

    def __str__(self) -> str:
        """Return the mean with its standard error, to four digits behind the point."""
        error = "" if self.standard_error is None else f" ± {self.standard_error:.4f}"
        return f"{self.value:.4f}{error}"


def describe_bounds(pictures: Sequence[PictureDensity], *, protocol: dict[str, Any]) -> dict[str, Bound]:
    """Return the mean of each figure over pictures, each of which counts alike whatever its size."""
    count, bounds = len(pictures), {}
    for name, meaning in protocol["figures"].items():
        values = float64_tensor([picture.bits[name] for picture in pictures])
        error = None if count < 2 else (values.std() / math.sqrt(count)).item()
        bounds[name] = Bound(value=values.mean().item(), standard_error=error, unit=_UNIT, protocol=meaning)
    return bounds


def density_protocol(model: DensityModel, *, cut: str, num_samples: int, seed: int) -> dict[str, Any]:
    """Return how figures are measured, with its SHA-256: those with equal hashes, on equal images, compare.

    Args:
        model: The autoencoder and its likelihood.
        cut: In words, what of the pictures was taken.
        num_samples: Latents for each picture.
        seed: Of all that is random.
    """
    whole = model.kind == "logistic"
    content = {
        "version": PROTOCOL_VERSION,
        "pictures": f"{cut}; levels 0 to 255 of each channel",
        "likelihood": _LIKELIHOODS[model.kind] + ("" if whole else f" {_DEQUANTISED}"),
        "prior": "standard normal",
        "samples": num_samples,
        "seed": seed,
        "figures": {
            "elbo": f"-log2 of the evidence lower bound over C·H·W, mean over {num_samples} latents a picture",
            "iwae": f"-log2 of the importance-weighted bound (Burda et al. 2016) of the same {num_samples} latents, "
            f"over C·H·W; no more than elbo, and in expectation no less than the bits of the model's own density",
            "distortion": "-log2 p(x given z) over C·H·W, mean over the latents",
            "rate": "KL divergence of the posterior from the prior over C·H·W, in closed form",
        },
        "mean": "over pictures, each of which counts alike",
        "precision": "networks in float32, sums in float64",
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return content | {"sha256": hashlib.sha256(canonical.encode()).hexdigest()}


def describe_likelihood(model: DensityModel) -> dict[str, Any]:
    """Return the likelihood for a file, its standard deviation also in levels."""
    return asdict(model.record) | {"std": model.record.std, "std_levels": model.record.std * LEVELS_PER_UNIT}


def format_bounds(
    name: str, model: DensityModel, bounds: dict[str, Bound], *, num_images: int, num_samples: int
) -> str:
    """Return a Markdown table of one row."""
    header = ["vae", "likelihood", "std (levels)", "images", "samples", *(f"{each} ({_UNIT})" for each in bounds)]
    std = f"{model.record.std * LEVELS_PER_UNIT:.3g}"
    row = [markdown_text(name), model.kind, std, str(num_images), str(num_samples), *map(str, bounds.values())]
    return markdown_table([header, row])


def num_nonfinite(pictures: Sequence[PictureDensity]) -> int:
    """Return how many pictures have a figure that isn't a finite number."""
    return sum(not torch.tensor(list(picture.bits.values())).isfinite().all() for picture in pictures)
