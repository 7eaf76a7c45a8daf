"""What regularises the discriminator, against plain computations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_vae.losses.adversarial import LogitAnchors, gradient_penalty

TRUE = torch.tensor(True)


def logits(*, seed: int, side: int = 3) -> Tensor:
    return torch.randn(2, 1, side, side, generator=torch.Generator().manual_seed(seed))


def test_lecam_draws_logits_to_the_other_ones_of_past_updates() -> None:
    anchors = LogitAnchors(decay=0.75, device=torch.device("cpu"))
    real, fake = logits(seed=0) + 2, logits(seed=1) - 1
    assert anchors.penalty(real, fake) == 0  # nothing is past yet
    anchors.update(torch.tensor(1.0), torch.tensor(-2.0), finite=TRUE)
    anchors.update(torch.tensor(3.0), torch.tensor(6.0), finite=TRUE)
    anchors.update(torch.tensor(float("nan")), torch.tensor(0.0), finite=~TRUE)
    of_real, of_fake = 0.75 * 1 + 0.25 * 3, 0.75 * -2 + 0.25 * 6
    expected = [max(0, x - of_fake) ** 2 for x in real.flatten().tolist()]
    expected = [a + max(0, of_real - y) ** 2 for a, y in zip(expected, fake.flatten().tolist(), strict=True)]
    assert anchors.penalty(real, fake).item() == pytest.approx(sum(expected) / len(expected))


def test_gradient_penalty_is_that_of_each_patch() -> None:
    """Of patches that don't overlap it is the mean of their own, and as large for a picture of more patches."""
    network = nn.Conv2d(3, 1, 4, stride=4)
    nn.init.constant_(network.bias, 0.5)  # where the penalty's own gradient is far from 0
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    judged = torch.tanh(network(images))
    each = [torch.autograd.grad(logit, images, retain_graph=True)[0].square().sum() for logit in judged.flatten()]
    penalty = gradient_penalty(judged, images)
    torch.testing.assert_close(penalty, torch.stack(each).mean())

    larger = F.pad(images.detach(), (8, 0, 0, 0), mode="circular").requires_grad_()
    torch.testing.assert_close(gradient_penalty(torch.tanh(network(larger)), larger), penalty)

    (gradient,) = torch.autograd.grad(penalty, network.bias)
    step = 0.02
    below, above = (gradient_penalty(torch.tanh(network(images) + shift), images) for shift in (-step, step))
    assert gradient.item() == pytest.approx((above - below).item() / (2 * step), rel=0.02)
