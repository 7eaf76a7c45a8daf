"""A teacher in place of an encoder that isn't trained, so that the decoder is measured on what it is for."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_vae.config.rules import FieldError, require
from ldm_vae.models.bottlenecks.bottleneck import Latent
from ldm_vae.training.run_autoencoder import RunAutoencoder
from ldm_vae.training.teaching import is_stored_teacher, open_running_teacher


def stand_in_for_encoder(run: RunAutoencoder, *, teacher: str | None, device: torch.device) -> None:
    """Have a teacher make the latents of a run's autoencoder, where its own encoder isn't trained.

    Args:
        run: The run; its autoencoder is changed in place.
        teacher: The autoencoder that the user named; None: the run's teacher.
        device: Where the autoencoder is measured.

    Raises:
        FieldError: The teacher's latents don't fit, it has to be named, or the run needs none.
    """
    student, of_run = run.family, run.config.model.teacher
    require(
        teacher is None or not student.has_encoder,
        f"<teacher> is {teacher}, but the run's own encoder is trained, and makes the latents; leave it out",
    )
    if student.has_encoder:
        return
    assert of_run is not None, "a decoder is trained alone on a teacher's latents"
    require(
        teacher is not None or not is_stored_teacher(of_run),
        f"<teacher> is missing: the run learnt from the latents in {of_run}; name the autoencoder that made them, for "
        f"the decoder to be measured on its latents of other images",
    )
    try:
        running = open_running_teacher(
            teacher or of_run, student=student, device=device, field="model.teacher" if teacher is None else "teacher"
        )
    except FieldError as error:
        raise FieldError(f"{error.message}; <teacher> names another place") if teacher is None else error from None

    def latent(images: Tensor) -> Latent:
        return running.mean_latent(images, {})

    student.stand_in = latent  # a function, which copies of the autoencoder share
