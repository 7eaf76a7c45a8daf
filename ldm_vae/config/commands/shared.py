"""Options that several commands share: each command's dataclass inherits those it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Optional

from ldm_vae.config.names import MixedPrecision, PerceptualChoice
from ldm_vae.config.reading import ReadingRules
from ldm_vae.config.rules import Options, at_least, local_path, positive, require


@dataclass(kw_only=True)
class ReadsImages(ReadingRules):
    """How a collection of images is read."""

    image_column: Optional[str] = None
    """Column that holds the images. Without it the only image column of the data is taken."""
    num_workers: Optional[int] = at_least(0, None)
    """Decoding processes of each process. With 0 a process decodes by itself. Without it there are as many as a GPU's
    process has cores of its own to decode on, less one, and 2 where there is no GPU."""
    strict: bool = False
    """Stop at the first unreadable image instead of skipping, counting and listing it."""


@dataclass(kw_only=True)
class ComparesImages(ReadsImages):
    """Which channels of the images reconstructions are compared with."""

    target_channels: list[int] = at_least(0, factory=list)
    """Channels of the images that reconstructions are compared with, in this order, counted from 0, for autoencoders
    that make other channels than they take. Without them all are compared."""


@dataclass(kw_only=True)
class MeasuresPerceptually(Options):
    """Which network the perceptual distance looks through."""

    perceptual: PerceptualChoice = "auto"
    """Network of the perceptual distance. `auto` takes LPIPS (vgg) where its weights are, otherwise the one that needs
    no download."""
    perceptual_weights: Optional[str] = local_path(None)
    """Local file with the weights of the LPIPS trunk. Without it they are taken from torch's usual cache."""


@dataclass(kw_only=True)
class RunsAutoencoder(Options):
    """How an autoencoder is run."""

    mixed_precision: MixedPrecision = "auto"
    """Precision of the convolutions. `auto` takes bf16 where the hardware has it."""
    memory_gib: Optional[float] = positive(None)
    """The most memory of the device, in GiB beside the weights, that an encode or decode may take. Larger images go
    through the network strip by strip, with the same result. Without it there is no bound."""


@dataclass(kw_only=True)
class WritesReport(Options):
    """Whether a page is made of the results."""

    report: bool = True
    """Write report.html at the end, a page with the figures, plots and pictures, which needs no network."""


@dataclass(kw_only=True)
class RayOptions(Options):
    """Where a Ray cluster is (with `--engine ray`)."""

    section: ClassVar[str] = "ray"

    address: str = "auto"
    """The cluster: `auto` is the one that this machine belongs to or that RAY_ADDRESS names, `local` starts one here
    for the length of the command, and `ray://HOST:10001` is one elsewhere."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.address in ("auto", "local") or "://" in self.address or ":" in self.address,
            f"<ray.address> is '{self.address}'; it must be auto, local or an address such as ray://HOST:10001",
        )


@dataclass(kw_only=True)
class ReadsVae(Options):
    """What the file or folder of an autoencoder doesn't say of it."""

    vae_config: Optional[str] = local_path(None)
    """A config.json with what a single file of the autoencoder doesn't say. Folders have their own."""
    scaling_factor: Optional[float] = positive(None)
    """Factor by which diffusion models multiply the latents, where the autoencoder doesn't say it or says it
    wrongly."""
    shift_factor: Optional[float] = None
    """Number that is subtracted from the latents before they are multiplied, where the autoencoder doesn't say it or
    says it wrongly."""

    @property
    def vae_arguments(self) -> dict[str, Any]:
        """The fields as arguments of `load_vae`."""
        return {
            "config": self.vae_config,
            "scaling_factor": self.scaling_factor,
            "shift_factor": self.shift_factor,
        }
