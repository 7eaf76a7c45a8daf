"""The shape of a cloud of latents: its dimension, how evenly it is spread, and whether classes are apart in it.

Unlike other measures these are no sums: they compare each point with all others.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ldm_vae.system.float64 import float64_zeros, in_float64

NEIGHBOURS = 10
FOLDS = 5
RIDGE = 0.1
"""Weight of the linear probe's squared norm, in units of the mean squared length of a sample's features."""


def intrinsic_dimension(points: Tensor) -> float:
    """Return the dimension of the manifold that points [n, d] lie on, estimated by TwoNN.

    The quotient mu of a point's distances to its second and first neighbour is Pareto distributed with the dimension
    as exponent, so that n / sum log mu is the estimate of maximum likelihood (Facco et al. 2017, "Estimating the
    intrinsic dimension of datasets by a minimal neighborhood information"). The estimate is biased downwards where
    points are few for the dimension. Points that coincide with another are left out; fewer than three points have NaN.
    """
    if len(points) < 3:
        return math.nan
    nearest = _distances(points).fill_diagonal_(math.inf).topk(2, largest=False).values
    nearest = nearest[nearest[:, 0] > 0]
    total = (nearest[:, 1] / nearest[:, 0]).log().sum().item()
    return len(nearest) / total if total > 0 else math.nan


def uniformity(points: Tensor) -> float:
    """Return log E exp(-2 |a - b|²) over pairs of points [n, d] scaled to length 1.

    It is 0 where all points coincide, and nears -4 the more evenly they are spread over directions (Wang & Isola 2020,
    "Understanding contrastive representation learning through alignment and uniformity on the hypersphere").
    """
    if len(points) < 2:
        return math.nan
    unit = nn.functional.normalize(in_float64(points), dim=1)
    squared = (2 - 2 * unit @ unit.T).clamp(min=0)
    first, second = torch.triu_indices(len(points), len(points), offset=1, device=squared.device)
    return (-2 * squared[first, second]).exp().mean().log().item()


def neighbour_accuracy(points: Tensor, labels: Tensor, *, neighbours: int = NEIGHBOURS) -> float:
    """Return how often most of a point's nearest others (by cosine, [n, d]) have its label [n].

    Of classes with equally many, the one of nearer ones counts.
    """
    unit = nn.functional.normalize(in_float64(points), dim=1)
    near = (unit @ unit.T).fill_diagonal_(-math.inf).topk(min(neighbours, len(points) - 1)).indices
    classes = labels.unique(return_inverse=True)[1]
    votes = float64_zeros(len(points), int(classes.max()) + 1, device=points.device)
    rank_weight = 1 + torch.arange(near.shape[1], 0, -1, dtype=votes.dtype, device=votes.device) * 1e-6
    votes.scatter_add_(1, classes[near], rank_weight.expand(near.shape))
    return in_float64(votes.argmax(1) == classes).mean().item()


def linear_accuracy(points: Tensor, labels: Tensor, *, folds: int = FOLDS) -> float:
    """Return how often a linear classifier of points [n, d] finds labels [n] that it wasn't fitted on.

    Ridge regression to the classes' indicators, in closed form, fitted `folds` times on all but every `folds`-th.
    """
    points = in_float64(points)
    points = (points - points.mean(0)) / points.std(0).clamp(min=1e-12)
    classes = labels.unique(return_inverse=True)[1]
    targets = nn.functional.one_hot(classes).to(points)
    fold = torch.arange(len(points), device=points.device) % folds
    right = 0
    for k in range(folds):
        train, test = fold != k, fold == k
        x, centre = points[train], targets[train].mean(0)
        gram = x @ x.T  # of samples: they are fewer than features, as a rule
        gram.diagonal().add_(RIDGE * x.shape[1])
        weights = torch.linalg.solve(gram, targets[train] - centre)
        scores = points[test] @ (x.T @ weights) + centre
        right += int((scores.argmax(1) == classes[test]).sum())
    return right / len(points)


def _distances(points: Tensor) -> Tensor:
    points = in_float64(points)
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
