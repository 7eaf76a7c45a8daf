"""The alignment's two losses with margins, and the ratio that balances them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ldm_vae.losses.alignment import AlignmentBalance, alignment_loss


@pytest.mark.parametrize("margins", [(0.0, 0.0), (0.5, 0.25)])
def test_it_is_va_vaes_two_losses_over_places_and_pairs_of_places(margins: tuple[float, float]) -> None:
    rng = torch.Generator().manual_seed(0)
    projected, features = (torch.randn(2, 5, 2, 3, generator=rng) for _ in range(2))
    cosine, distance = [], []
    for ours, theirs in zip(projected.flatten(2).mT, features.flatten(2).mT, strict=True):
        for i in range(6):
            cosine.append(max(0.0, 1 - margins[0] - F.cosine_similarity(ours[i], theirs[i], dim=0).item()))
            for j in range(6):
                difference = F.cosine_similarity(ours[i], ours[j], dim=0) - F.cosine_similarity(
                    theirs[i], theirs[j], dim=0
                )
                distance.append(max(0.0, abs(difference.item()) - margins[1]))
    expected = sum(cosine) / len(cosine) + sum(distance) / len(distance)
    loss = alignment_loss(projected, features, cosine_margin=margins[0], distance_margin=margins[1])
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_aligned_latents_cost_nothing_and_teach_the_features_nothing() -> None:
    features = torch.randn(1, 4, 3, 3).requires_grad_()
    projected = (2 * features.detach()).requires_grad_()
    loss = alignment_loss(projected, features, cosine_margin=1e-3, distance_margin=1e-3)
    assert loss.item() == 0
    alignment_loss(torch.randn(1, 4, 3, 3).requires_grad_(), features, cosine_margin=0, distance_margin=0).backward()
    assert features.grad is None


def test_the_ratio_is_that_of_the_norms_clamped_and_kept_in_updates_that_are_not_finite() -> None:
    balance = AlignmentBalance(device=torch.device("cpu"))
    assert balance.ratio == 0  # before the first update nothing is known
    finite, broken = torch.tensor(True), torch.tensor(False)
    balance.update(torch.tensor([3.0, 4.0]), torch.tensor([0.6, 0.8]), num_elements=10, finite=finite)
    assert balance.ratio.item() == pytest.approx(5 / (1 + 1e-4))
    balance.update(torch.tensor([30.0]), torch.tensor([1.0]), num_elements=10, finite=broken)
    assert balance.ratio.item() == pytest.approx(5 / (1 + 1e-4))
    balance.update(torch.tensor([1e12]), torch.tensor([1.0]), num_elements=1000, finite=finite)
    assert balance.ratio.item() == pytest.approx(1e5)
