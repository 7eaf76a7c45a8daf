"""Distances between a set of pictures and the set of their reconstructions, in a network's features."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_kernel, poly_mmd

from ldm_vae.system.float64 import in_float64

SUBSET_SIZE = 1000
NUM_SUBSETS = 100
_PUBLISHED_SEED = 2020  # torch-fidelity's default


@dataclass(frozen=True, kw_only=True)
class KernelDistance:
    """A squared maximum mean discrepancy with the cubic polynomial kernel (Binkowski et al. 2018), over subsets.

    Being unbiased, `value` may be slightly negative.
    """

    value: float
    """Mean over the subsets."""
    std: float
    """Standard deviation over the subsets; 0 with a single one."""
    num_subsets: int
    subset_size: int


@dataclass(frozen=True, kw_only=True)
class SetDistances:
    """Distances between a set of pictures and the set of their reconstructions."""

    kid: KernelDistance
    """The published estimate, as torch-fidelity computes it: originals and reconstructions count as independent."""
    paired_kid: KernelDistance
    """The estimate that leaves out the pairs of an original and its own reconstruction."""
    fid: float | None
    """Frechet distance between two Gaussians (Heusel et al. 2017); biased upwards by few images."""


def set_distances(
    reference: Tensor, features: Tensor, *, with_fid: bool = True, max_subset_size: int = SUBSET_SIZE, seed: int = 0
) -> SetDistances:
    """Return the distances between the features of pictures and those of their reconstructions.

    Args:
        reference: Features of the pictures [n, d], n at least 2.
        features: Features of their reconstructions [n, d], in the same order.
        with_fid: Whether to compute the Frechet distance too.
        max_subset_size: Images of a subset, at most.
        seed: Seed of the paired estimate's subsets.
    """
    reference, features = in_float64(reference), in_float64(features)
    if not features.isfinite().all():
        with_fid = False  # there are no eigenvalues; the kernel distances become NaN
    return SetDistances(
        kid=kernel_distance(reference, features, max_subset_size=max_subset_size),
        paired_kid=paired_kernel_distance(reference, features, max_subset_size=max_subset_size, seed=seed),
        fid=frechet_distance(reference, features) if with_fid else None,
    )


def kernel_distance(reference: Tensor, features: Tensor, *, max_subset_size: int = SUBSET_SIZE) -> KernelDistance:
    """Return the published KID of two sets of features [n, d] and [m, d], as torch-fidelity 0.3 and later compute it.

    `NUM_SUBSETS` times as many images as `max_subset_size`, or as there are, are drawn from either set, independently
    and by torch-fidelity's seed, so that 1,000 images and more give its very value.
    """
    size = min(max_subset_size, len(reference), len(features))
    rng = np.random.RandomState(_PUBLISHED_SEED)
    distances = []
    for _ in range(NUM_SUBSETS):
        rows, other_rows = (rng.choice(len(each), size, replace=False) for each in (reference, features))
        distances.append(poly_mmd(reference[torch.from_numpy(rows)], features[torch.from_numpy(other_rows)]))
    return _over_subsets(distances, subset_size=size)


def paired_kernel_distance(
    reference: Tensor, features: Tensor, *, max_subset_size: int = SUBSET_SIZE, seed: int = 0
) -> KernelDistance:
    """Return the KID of paired features [n, d], over disjoint subsets of which one holds each image.

    A reconstruction is no independent draw: it is close to its own original. With those n pairs counted, the published
    estimate falls far below zero in small sets; so they are left out (see `paired_discrepancy`).
    """
    order = torch.randperm(len(reference), generator=torch.Generator().manual_seed(seed)).to(reference.device)
    subsets = order.tensor_split(math.ceil(len(reference) / max_subset_size))
    distances = [paired_discrepancy(reference[subset], features[subset]) for subset in subsets]
    return _over_subsets(distances, subset_size=len(subsets[0]))


def paired_discrepancy(reference: Tensor, features: Tensor) -> Tensor:
    """Return the unbiased squared MMD of paired features, both [n, d] (Gretton et al. 2012, equation 4).

    The terms i = j are left out of the cross term too: of n (n - 1) ones, as of the other two.
    """
    kernels = poly_kernel(reference, reference) + poly_kernel(features, features)
    kernels -= 2 * poly_kernel(reference, features)
    num_images = len(reference)
    return (kernels.sum() - kernels.trace()) / (num_images * (num_images - 1))


def _over_subsets(distances: list[Tensor], *, subset_size: int) -> KernelDistance:
    values = torch.stack(distances)
    return KernelDistance(
        value=values.mean().item(),
        std=values.std(unbiased=False).item(),
        num_subsets=len(distances),
        subset_size=subset_size,
    )


def frechet_distance(reference: Tensor, features: Tensor) -> float:
    """Return the Frechet distance between the Gaussians of two sets of features [n, d] and [m, d], float64.

    Heusel et al. 2017, equation 6: |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^(1/2)). With C = A^T A the last trace is the
    sum of the singular values of A1 A2^T, which is the smaller matrix where there are fewer pictures than features.
    The distance is NaN where a feature isn't finite.
    """
    if not (reference.isfinite().all() and features.isfinite().all()):
        return math.nan
    if max(len(reference), len(features)) <= reference.shape[1]:
        means = [each.mean(0) for each in (reference, features)]
        roots = [
            (each - mean) / math.sqrt(len(each) - 1) for each, mean in zip((reference, features), means, strict=True)
        ]
        traces = sum(root.square().sum() for root in roots) - 2 * torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
        return ((means[0] - means[1]).square().sum() + traces).item()
    identity = nn.Identity()
    identity.num_features = reference.shape[1]  # type: ignore[assignment]
    distance = FrechetInceptionDistance(feature=identity).to(reference.device)
    distance.update(reference, real=True)
    distance.update(features, real=False)
    return distance.compute().item()
