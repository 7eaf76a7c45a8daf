"""The discriminator's part of a micro-batch: g, cut at y as the terms on images are, and D's own loss."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_vae.losses.adversarial import generator_loss, gradient_penalty
from ldm_vae.losses.objective import Objective
from ldm_vae.models.discriminators.discriminator import Discriminator, detached
from ldm_vae.models.precision import autocast
from ldm_vae.training.state import TrainedNetwork


class AdversarialPart:
    """Differentiates g down to y; later runs D forward and backward on x and the same y.

    `figures` holds g, and after `train_discriminator` what D's loss consists of.

    Args:
        discriminator: D.
        y: The reconstruction, [B, C, H, W], cut from the graph; it requires a gradient.
        bf16: Whether D's convolutions run in bf16.
    """

    def __init__(self, discriminator: TrainedNetwork[Discriminator], y: Tensor, *, bf16: bool) -> None:
        self._discriminator, self._bf16 = discriminator, bf16
        with autocast(y.device, enabled=bf16):
            # Around DDP: this backward ends at y, and leaves nothing in D's weights to be averaged.
            self._seen = discriminator.module.look(y)
            g = generator_loss(discriminator.module.logits(self._seen))
        (self.grad_y,) = torch.autograd.grad(g, y)
        self.figures: dict[str, Tensor] = {"g": g}

    def train_discriminator(self, x: Tensor, objective: Objective, *, penalised: bool, accumulation: int) -> None:
        """Add the gradients of D's loss to those in D.

        Args:
            x: The images, [B, C, H, W].
            objective: What D minimises.
            penalised: Whether the loss has its gradient penalty.
            accumulation: Micro-batches of an update.
        """
        with autocast(x.device, enabled=self._bf16):
            judged = self._discriminator.wrapped(x, detached(self._seen), differentiable=penalised)
        penalty = gradient_penalty(judged.real, judged.at) if penalised else None
        loss = objective.discriminator_loss(judged.real, judged.fake, penalty=penalty)
        (loss.total / accumulation).backward()
        self.figures |= loss.figures | {"logits_real": judged.real.mean(), "logits_fake": judged.fake.mean()}
