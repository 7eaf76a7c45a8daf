"""Whether a training state is sound, so that it may become a checkpoint."""

from __future__ import annotations

import torch

from ldm_vae.config.run import Config
from ldm_vae.models.precision import autocast, use_bf16
from ldm_vae.training.checkpoint import checkpoint_tensors
from ldm_vae.training.checkpoint_files import DISCRIMINATOR_OPTIMIZER, OPTIMIZER
from ldm_vae.training.state import TrainingState
from ldm_vae.training.validation import reconstruct


def why_unsound(state: TrainingState, config: Config) -> str | None:
    """Return why the state must not become a checkpoint, which could push out a sound one; None where it is sound.

    Weights that have just diverged may be finite, and so may the update that made them; only what they compute is not.
    So the autoencoder also reconstructs a picture of noise here, and the discriminator judges it. This waits for the
    device.
    """
    row = state.meter.row
    if row:
        return f"the last {row} updates were not finite" if row > 1 else "the last update was not finite"
    for file, tensors in checkpoint_tensors(state).items():
        if file not in (OPTIMIZER, DISCRIMINATOR_OPTIMIZER):
            for name, tensor in tensors.items():
                if not tensor.isfinite().all():
                    return f"{name} ({file.removesuffix('.safetensors')}) is not finite"
    return None if _computes_finite_values(state, config) else "the weights compute values that are not finite"


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # one more shape would be compiled
def _computes_finite_values(state: TrainingState, config: Config) -> bool:
    device, (width, height) = state.lam.device, config.data.sizes[0]
    rng = torch.Generator().manual_seed(0)
    picture = torch.rand(1, config.model.in_channels, height, width, generator=rng) * 2 - 1  # [1, C, H, W]
    picture = picture.to(device, memory_format=torch.channels_last)
    family = state.family
    shape = (1, family.latent_channels, height // family.spatial_factor, width // family.spatial_factor)
    stored = {"mean": torch.randn(shape, generator=rng).to(device)}  # for a teacher of stored latents
    reconstruction = reconstruct(state, picture, train=config.train, stored=stored)
    results = [reconstruction.images, reconstruction.mean]
    if state.discriminator is not None:
        with autocast(device, enabled=use_bf16(config.train.mixed_precision, device=device)):
            judge = state.discriminator.module
            results.append(judge.logits(judge.look(reconstruction.images)))
    return all(bool(result.isfinite().all()) for result in results)
