"""Options of `ldm-vae explore sample`, `interpolate`, `edit`, `neighbours` and `augment`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from ldm_vae.config.commands.shared import ReadsImages, ReadsVae, RunsAutoencoder
from ldm_vae.config.names import Covariance, DirectionKind, LatentDistance, LatentPaths, MixedPrecision, SampleMethod
from ldm_vae.config.reading import ReadingRules
from ldm_vae.config.rules import at_least, between, local_path, place, positive, require, source


@dataclass(kw_only=True)
class ExploreOptions(ReadsVae, RunsAutoencoder):
    """What all that explores a latent space asks for."""

    vae: str = source()
    """Autoencoder: a diffusers folder, a hub id or a single file."""
    output: str = local_path()
    """Folder for the pictures and explore.json, which says how they were made."""
    resolution: Optional[int] = positive(None)
    """Side in pixels that the short side of a picture is resized to, and of the square that is cropped from its
    centre. Without it whole pictures are taken, cut about their middles to a multiple of the model's factor."""
    mixed_precision: MixedPrecision = "no"
    """Precision of the convolutions: `no` is float32, `auto` takes bf16 where the hardware has it."""
    overwrite: bool = False
    """Replace an earlier output of the same kind in the output folder."""


@dataclass(kw_only=True)
class ExploreDataOptions(ExploreOptions, ReadsImages):
    """What exploring asks for where it reads a collection of pictures."""

    num_images: Optional[int] = positive(None)
    """The most pictures of the data to take, spread over it. Without it all are taken."""
    split: Optional[str] = None
    """Split of the data. Without it `train` is taken, or the only split."""
    batch_size: int = positive(8)
    """Number of pictures of one size that are encoded or decoded at once."""


@dataclass(kw_only=True)
class ExploreSampleOptions(ExploreDataOptions):
    """Draw pictures from the latent space: latents at random, decoded.

    Example: ldm-vae explore sample --vae export --latents latents --output samples
    """

    data: Optional[str] = source(None)
    """Pictures whose latents say what the latent space is like. It goes in place of `latents`."""
    latents: Optional[str] = place(None)
    """Folder of latents that `encode` wrote, or its address, in place of `data`."""
    method: SampleMethod = "auto"
    """Where latents are drawn from: the standard normal distribution (`prior`), a Gaussian fitted to the latents,
    codes by how often they are used (`codes`, for a codebook), or a small diffusion model that is trained on the
    latents. `auto` takes the prior where the latents were measured to follow it, else the Gaussian."""
    covariance: Covariance = "full"
    """What of the fitted Gaussian is fitted: the mean and covariance of all elements of a latent (`full`), or the mean
    and standard deviation of each channel, elements being independent (`channel`)."""
    count: int = positive(16)
    """Number of pictures to draw."""
    seed: int = at_least(0, 0)
    """Seed of the draws; sample j is a function of it and of j."""
    steps: Optional[int] = positive(None)
    """Steps of the diffusion model's training, in place of the 1,000 of the probe's small budget."""
    resolution: Optional[int] = positive(None)
    """Side in pixels of the square pictures. Without it that of the latents' folder, or 256."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.data is None or self.latents is None, "<data> and <latents> both give latents; name one of them")
        known = self.data is not None or self.latents is not None
        require(
            known or self.method == "prior",
            f"<method> {self.method} needs latents to learn from; give <latents> or <data>, or <method> prior",
        )
        require(
            self.latents is None or self.resolution is None,
            "<resolution> is that of the latents' folder; leave it out beside <latents>",
        )
        require(
            self.steps is None or self.method == "diffusion",
            "<steps> are of the diffusion model's training; they go with <method> diffusion",
        )


@dataclass(kw_only=True)
class ExploreInterpolateOptions(ExploreOptions, ReadingRules):
    """Go from one picture to another through the latent space: a strip of pictures and an animation.

    Example: ldm-vae explore interpolate cat.png dog.png --vae export --output way
    """

    first: str = local_path()
    """Picture to begin with."""
    second: str = local_path()
    """Picture to end with."""
    path: LatentPaths = "both"
    """Way through the latent space: the straight line, the great circle about its origin (`spherical`), or both, each
    in files of its own."""
    steps: int = at_least(2, 9)
    """Pictures on the way, both ends included."""
    fps: float = between(0.01, 1000, 8.0)
    """Pictures a second of the animation, which goes there and back."""


@dataclass(kw_only=True)
class ExploreEditOptions(ExploreDataOptions):
    """Change pictures along a direction of the latent space, which two folders of examples give.

    Example: ldm-vae explore edit --vae export --data photos --towards smiling --away_from neutral --strength 0.5 1
    --output edited
    """

    data: str = source()
    """Pictures to change."""
    towards: str = source()
    """Pictures that have what is to be added."""
    away_from: str = source()
    """Pictures that lack it."""
    direction: DirectionKind = "channel"
    """How the difference of the examples' mean latents is applied: its mean over positions, the same everywhere
    (`channel`), or each position's own (`map`), for pictures that are aligned, at one `resolution`."""
    strength: list[float] = field(default_factory=lambda: [1.0])
    """How far to go, in differences of the means; negative goes back. Each gives a picture."""
    mask: Optional[str] = local_path(None)
    """Picture that is white where pictures may change. It is resized and cropped as they are."""
    box: list[int] = at_least(0, factory=list)
    """Left, top, right and bottom of what may change, in pixels of the cropped pictures, in place of `mask`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.strength), "<strength> is empty; name at least one number")
        require(
            len({f"{strength:+g}" for strength in self.strength}) == len(self.strength),
            f"<strength> is {self.strength}; name each number once",
        )
        require(self.mask is None or not self.box, "<mask> and <box> both say what may change; give one")
        left, top, right, bottom = self.box if len(self.box) == 4 else (0, 0, 0, 0)
        require(
            not self.box or (left < right and top < bottom),
            f"<box> is {self.box}; it must be left, top, right and bottom, in pixels",
        )
        require(
            self.direction == "channel" or self.resolution is not None,
            "<direction> map compares positions of pictures of one size; give a <resolution>",
        )


@dataclass(kw_only=True)
class ExploreNeighboursOptions(ExploreOptions, ReadingRules):
    """Find the latents of a folder that are nearest to a picture's.

    Example: ldm-vae explore neighbours photo.png --vae export --latents latents --output nearest
    """

    picture: str = local_path()
    """Picture whose neighbours are wanted. It is resized and cropped to the size of the folder's pictures."""
    latents: str = place()
    """Folder of latents that `encode` wrote, or its address; of any size."""
    count: int = positive(8)
    """Number of neighbours."""
    distance: LatentDistance = "euclidean"
    """What is small for neighbours, of latents with mean 0 and standard deviation 1 a channel over the folder: the
    root mean square of their difference, or 1 less the cosine between them."""
    resolution: Optional[int] = positive(None)
    """Side in pixels of the square that the picture becomes. Without it the size of the folder's pictures is taken; of
    several sizes that of the nearest aspect ratio."""
    other_vae: bool = False
    """Search even where the latents are from another autoencoder."""


@dataclass(kw_only=True)
class ExploreAugmentOptions(ExploreDataOptions):
    """Write variants of a collection's pictures, drawn near their latents, with their labels, captions and metadata.

    Example: ldm-vae explore augment --vae export --data photos --output more --copies 4
    """

    data: str = source()
    """Pictures to vary."""
    copies: int = positive(1)
    """Variants of each picture."""
    posterior: bool = True
    """Draw from the picture's posterior, where the autoencoder has one, in place of its mean."""
    move: float = at_least(0, 0.1)
    """Size of the random move that is added to a latent, in standard deviations of the picture's own latent, a
    channel."""
    seed: int = at_least(0, 0)
    """Seed of the draws; a variant is a function of it, the picture's name and the variant's number."""
