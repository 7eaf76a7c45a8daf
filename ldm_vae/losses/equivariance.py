"""How far latents are from moving as their images do."""

from __future__ import annotations

from torch import Tensor

LEAST_VARIANCE = 1e-6


def latent_consistency(of_transformed: Tensor, transformed: Tensor) -> Tensor:
    """Mean over images of |E(T x) - T E(x)|² over the variance of T E(x), which is taken without a gradient.

    Mean and variance are those of an image's elements, so that it is the same however a batch is cut.

    Args:
        of_transformed: E(T x), latents of the transformed images, [B, c, h, w].
        transformed: T E(x), transformed latents of the images, [B, c, h, w].

    Returns:
        [], 0 for an encoder that is equivariant.
    """
    variance = transformed.detach().flatten(1).var(dim=1, correction=0)
    squared = (of_transformed - transformed).square().flatten(1).mean(1)
    return (squared / (variance + LEAST_VARIANCE)).mean()
