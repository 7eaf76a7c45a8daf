"""A frozen autoencoder whose latents another one learns to make and to decode."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, pixel_shuffle

from ldm_vae.config.model import ModelConfig
from ldm_vae.config.rules import require
from ldm_vae.models.bottlenecks.bottleneck import Latent
from ldm_vae.models.families.family import Family
from ldm_vae.models.load import load_vae


class Teacher:
    """Gives its own latents in place of the student's.

    They are normalised as the teacher's pipelines do: a student in their place needs no scaling. FLUX.2's patches are
    put back into place after that.

    Args:
        family: The autoencoder; it isn't trained.
        device: Where it runs.
    """

    def __init__(self, family: Family, *, device: torch.device) -> None:
        family.model.requires_grad_(False)
        self.family = family.eval().to(device, memory_format=torch.channels_last)
        self._normalisation = family.normalisation.to(device)

    @torch.no_grad()
    def latent(self, images: Tensor, noise: Tensor) -> Latent:
        """Return the latent that the student is to make of images [B, C, H, W] in [-1, 1], and decodes meanwhile."""
        latent = self.family.encode_latent(images, noise)
        return Latent(z=self._own_place(latent.z), mean=self._own_place(latent.mean))

    def teach(self, latent: Latent, images: Tensor, noise: Tensor) -> Latent:
        """Return the teacher's latent, with how far the student's is from its mean, `imitation`, as a loss."""
        taught = self.latent(images, noise)
        return Latent(z=taught.z, mean=taught.mean, losses={"imitation": mse_loss(latent.mean, taught.mean)})

    def _own_place(self, z: Tensor) -> Tensor:
        return pixel_shuffle(self._normalisation.normalise(z), self.family.patch_size)


def load_teacher(config: ModelConfig, *, student: Family, device: torch.device) -> Teacher | None:
    """Load the autoencoder that `model.teacher` names; None where it names none.

    Raises:
        ValueError: There is none, or the student's latents have another shape.
    """
    if config.teacher is None:
        return None
    family = load_vae(config.teacher, field="model.teacher").family
    for name, of_teacher, of_student in (
        ("channels of images", family.in_channels, student.in_channels),
        ("latent channels", family.latent_channels, student.latent_channels),
        ("spatial factor", family.spatial_factor, student.spatial_factor),
    ):
        require(
            of_teacher == of_student,
            f"<model.teacher> {config.teacher} and the model differ in their {name}: {of_teacher} and {of_student}; "
            f"take <model.latent_channels> {family.latent_channels} and as many levels as give its factor",
        )
    return Teacher(family, device=device)
