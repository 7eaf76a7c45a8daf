"""The alignment's part of a micro-batch: cut at the latents, as the terms on images are cut at y."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_vae.losses.objective import Objective
from ldm_vae.losses.term import Term
from ldm_vae.models.families.family import Family
from ldm_vae.models.trainable import TrainableOutput


class AlignmentPart:
    """Differentiates the alignment down to z and its projection, and measures it at the encoder's last layer.

    `roots` go into the one backward of the step, weighted. After that backward, `decoded` of the output has the
    gradient that came through the decoder; with it and the alignment's own at z, both gradients at the last layer's
    weight V follow from the layer's input, as those at W do. No network is run backward for it.

    Args:
        term: The alignment.
        output: What the trainable autoencoder returned.
        images: Those that were encoded.
        weight: lam_alignment, [].
        accumulation: Micro-batches of an update.
    """

    def __init__(
        self, term: Term, output: TrainableOutput, images: Tensor, *, weight: Tensor, accumulation: int
    ) -> None:
        assert term.network is not None
        self._output, self._accumulation = output, accumulation
        z = output.latent.z.detach().requires_grad_()
        trained = list(term.network.parameters())
        figure = term.of(z, images)
        assert figure is not None
        self.figures = {term.name: figure.detach(), "lam_alignment": weight}
        self._grad_z, *grads = torch.autograd.grad(figure, [z, *trained])
        self.roots = [
            (root, weight * grad / accumulation)
            for root, grad in zip([output.latent.z, *trained], [self._grad_z, *grads], strict=True)
        ]

    def gradients(self, family: Family, noise: Tensor) -> Tensor:
        """Return the gradients at V, [2, ...]: of what came through the decoder, and of the alignment."""
        end = self._output.encoder_end
        assert end is not None
        assert end.decoded.grad is not None
        hidden = end.hidden.detach().requires_grad_()
        z = family.bottleneck(hidden, noise).z
        gradients = []
        for grad_z in (end.decoded.grad * self._accumulation, self._grad_z):
            (grad_hidden,) = torch.autograd.grad(z, hidden, grad_z, retain_graph=True)
            gradients.append(family.hidden_layer_gradient(end.features, grad_hidden))
        return torch.stack(gradients)


def align(
    objective: Objective, output: TrainableOutput, images: Tensor, *, step: int, accumulation: int
) -> AlignmentPart | None:
    """Return the alignment's part of a micro-batch in the update after `step` updates; None where nothing is aligned.

    Args:
        objective: What is minimised.
        output: What the trainable autoencoder returned.
        images: Those that were encoded.
        step: Number of updates made.
        accumulation: Micro-batches of an update.
    """
    term = objective.alignment
    if term is None:
        return None
    assert objective.balance is not None
    weight = term.weight_at(step) * objective.balance.ratio
    return AlignmentPart(term, output, images, weight=weight, accumulation=accumulation)
