"""The panel's measures: what each is, where it comes from, and what better means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from ldm_vae.metrics.equivariance import GROUPS
from ldm_vae.system.markdown import markdown_table

SIGMAS = (0.05, 0.1, 0.2, 0.5)
"""Standard deviations of the noise that decoders are tried with, in units of each channel's."""
SEGMENTS = 4
"""Pieces that the way between two pictures' latents is cut into."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A figure of the panel."""

    unit: str
    better: Literal["higher", "lower", ""]
    """Which way is better for diffusion, other things being equal; empty: it describes, nothing is ranked by it."""
    definition: str
    source: str


_EQUIVARIANCE = "EQ-VAE, arXiv 2502.09509; SE, arXiv 2502.14831"
_NOISE = "VE-Loss, arXiv 2603.21085; l-DeTok"
_WHAT = {
    "rotation": "turns by 90, 180 and 270 degrees",
    "flip": "both mirrors",
    "scale": "bilinear scales of 1/2 and 3/4, where these are whole latent pixels",
}


def _measures() -> dict[str, Measure]:
    named: dict[str, Measure] = {}

    def add(
        name: str, better: Literal["higher", "lower", ""], definition: str, source: str = "", unit: str = ""
    ) -> None:
        named[name] = Measure(unit=unit, better=better, definition=definition, source=source)

    add("psnr", "higher", "mean over images of the PSNR of D(E(x)) to x", unit="dB")
    add("perceptual", "lower", "mean perceptual distance of D(E(x)) to x", "Zhang et al. 2018")
    for group in GROUPS:
        text = f"sqrt(sum |E(T x) - T E(x)|² / sum |E(T x)|²) over {_WHAT[group]}; channels normalised over the data"
        add(f"equivariance_{group}", "lower", text, _EQUIVARIANCE)
    for group in GROUPS:
        text = f"mean PSNR of D(T E(x)) to T x over {_WHAT[group]}"
        add(f"equivariance_psnr_{group}", "higher", text, _EQUIVARIANCE, unit="dB")
    add("spectrum_distance", "lower", "KL(image's || latent's) of the distributions of log(1 + power) over 16 rings "
        "of frequency, the image reduced to the latent's size, its spectrum times frequency",
        "arXiv 2603.14645")  # fmt: skip
    add("high_frequency_share", "lower", "power beyond half the Nyquist frequency over all but the mean's, averaged "
        "over channels; white noise has 0.80", "SE, arXiv 2502.14831")  # fmt: skip
    add("spectral_slope", "", "slope of log power over log frequency; white noise has 0, photographs about -2",
        "Field 1987")  # fmt: skip
    for sigma in SIGMAS:
        text = f"mean PSNR to x of D(z + {sigma:g} s n), s each channel's standard deviation, n standard normal"
        add(f"robustness_psnr_{sigma:g}", "higher", text, _NOISE, unit="dB")
    for sigma in SIGMAS:
        text = f"mean perceptual distance of D(z + {sigma:g} s n) to x"
        add(f"robustness_perceptual_{sigma:g}", "lower", text, _NOISE)
    add("path_length", "lower", f"distance of neighbours on the straight way between two pictures' latents, cut in "
        f"{SEGMENTS}, times {SEGMENTS}², averaged; perceptual, or without such a network squared in pixels",
        "Karras et al. 2019, perceptual path length")  # fmt: skip
    add("bits_per_pixel", "", "KL(q(z|x) || N(0, 1)) an image pixel", "Kingma & Welling 2014", unit="bits/pixel")
    add("information_bits_per_pixel", "", "upper bound of I(x; z) an image pixel: the entropy of a Gaussian of the "
        "latents' covariance less the posterior's", "Hoffman & Johnson 2016", unit="bits/pixel")  # fmt: skip
    add("active_channels", "", "channels whose posterior mean varies by more than 0.01", "Burda et al. 2016")
    add("effective_channels", "", "exp of the entropy of the eigenvalues of the channels' covariance",
        "Roy & Vetterli 2007")  # fmt: skip
    add("channel_correlation", "", "mean absolute correlation of two different channels over images and positions")
    add("intrinsic_dimension", "", "TwoNN over images' whole latents; biased downwards by few images",
        "Facco et al. 2017")  # fmt: skip
    add("uniformity", "", "log E exp(-2 |a - b|²) over pairs of images' latents, scaled to length 1",
        "Wang & Isola 2020")  # fmt: skip
    add("knn_accuracy", "higher", "how often most of the 10 nearest pictures (cosine of latents pooled to 4x4) have a "
        "picture's label; chance is a class's share", "MAETok; VTP, arXiv 2512.13687")  # fmt: skip
    add("linear_accuracy", "higher", "accuracy of a ridge regression of the same features on labels that it wasn't "
        "fitted on, five-fold", "Alain & Bengio 2017")  # fmt: skip
    return named


MEASURES = _measures()


def describe_measures() -> dict[str, dict[str, str]]:
    """Return what each measure is, for a file that is read without this package."""
    return {name: asdict(measure) for name, measure in MEASURES.items()}


def format_panel(names: Sequence[str], figures: Sequence[dict[str, float]]) -> str:
    """Return a Markdown table, a row a measure that any autoencoder has, a column an autoencoder."""
    rows = [["measure", "better", *names]]
    for name, measure in MEASURES.items():
        if any(name in each for each in figures):
            label = f"{name} ({measure.unit})" if measure.unit else name
            digits = 2 if measure.unit == "dB" else 4
            cells = [f"{each[name]:.{digits}f}" if name in each else "" for each in figures]
            rows.append([label, measure.better, *cells])
    return markdown_table(rows)
