"""Options of `ldm-vae probe`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ldm_vae.config.commands.shared import ComparesImages, MeasuresPerceptually, WritesReport
from ldm_vae.config.names import MixedPrecision, Normalisation, ProbeBudget
from ldm_vae.config.rules import at_least, local_path, place, positive, require, source


@dataclass(kw_only=True)
class ProbeOptions(ComparesImages, MeasuresPerceptually, WritesReport):
    """Tell how well diffusion models would learn on the latents of autoencoders.

    A panel of measures is taken without training. Then the same small diffusion model is trained on the latents of
    each autoencoder, from several seeds, and its decoded samples are compared with the pictures. An interrupted probe
    goes on when it is started again.
    """

    vae: list[str] = source()
    """Autoencoders: diffusers folders, hub ids or single files. Give --vae again for each further one."""
    reference: Optional[str] = source(None)
    """Autoencoder beside which the others are judged. Without it the first `vae` is taken."""
    data: str = source()
    """Pictures to encode, to learn from and to compare samples with."""
    output: str = local_path()
    """Folder for metrics.json, the table, the picture of samples and the report; an interrupted probe is finished."""
    latents: Optional[list[str]] = place(None)
    """Folders that `encode` wrote, to learn from in place of latents of `data`: one for the reference, if there is
    one, and one for each `vae`, in this order."""
    split: Optional[str] = None
    """Split of the data. Without it `train` is taken, or the only split."""
    budget: ProbeBudget = "small"
    """Size and length of the trainings. `small` is for a CPU, `standard` takes minutes on a GPU, `full` hours."""
    no_diffusion: bool = False
    """Measure the panel alone, without training."""
    control: bool = False
    """Probe the reference once more with its latents scrambled. It has to come out last; otherwise the budget is too
    small to tell autoencoders apart."""
    steps: Optional[int] = positive(None)
    """Steps of each training, in place of the budget's."""
    seconds: Optional[float] = positive(None)
    """Time that a training may take, in place of a number of steps. How many steps it is good for is measured once, on
    the first autoencoder, and is the same for all."""
    seeds: Optional[int] = positive(None)
    """Trainings for each autoencoder, in place of the budget's; two at least give a spread."""
    resolution: Optional[int] = positive(None)
    """Side in pixels that the short side of a picture is resized to, and of the square that is cropped from its
    centre, in place of the budget's."""
    num_images: Optional[int] = at_least(2, None)
    """The most pictures to learn from, spread over the data, in place of the budget's."""
    num_samples: Optional[int] = at_least(2, None)
    """Samples of each training, in place of the budget's, and at most as many pictures to compare them with."""
    panel_images: int = at_least(0, 256)
    """The most pictures for the panel, spread over those to learn from. With 0 there is no panel."""
    normalize: Normalisation = "channel"
    """How latents are normalised: `channel` to mean 0 and standard deviation 1 a channel, `scaling` by the
    autoencoder's own scaling."""
    batch_size: int = positive(8)
    """Number of pictures that are encoded or decoded at once."""
    inception_weights: Optional[str] = local_path(None)
    """Local file with torch-fidelity's Inception weights. Without it they are taken from torch's cache. The features
    of EfficientNet-Lite0 are compared as well."""
    mixed_precision: MixedPrecision = "auto"
    """Precision of the autoencoders, and on a GPU of the diffusion model. `auto` takes bf16 where the hardware has
    it."""
    overwrite: bool = False
    """Replace an earlier probe in the output folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.vae) > 0, "<vae> is empty; name at least one autoencoder")
        require(
            self.steps is None or self.seconds is None, "<steps> and <seconds> both say how long to train; give one"
        )
        count = len(self.vae) + (self.reference is not None)
        require(
            self.latents is None or len(self.latents) == count,
            f"<latents> names {len(self.latents or [])} folders for {count} autoencoders; give one for each",
        )
        require(
            not self.no_diffusion or self.panel_images > 0,
            "<no_diffusion> leaves the panel alone, and <panel_images> 0 leaves it out; nothing would be measured",
        )
        require(
            not (self.no_diffusion and self.control), "<control> is of the trainings that <no_diffusion> leaves out"
        )
        require(
            not (self.latents and self.control), "<control> encodes the data by itself; it doesn't go with <latents>"
        )
