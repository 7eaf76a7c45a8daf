"""A codebook learns from the global batch what plain loops over its places give, however the batch is cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ldm_vae.models.bottlenecks.codes import DEAD, CodeStatistics
from ldm_vae.models.bottlenecks.quantised import FiniteScalar, VectorQuantised, grid

CODES, CHANNELS, DECAY = 12, 3, 0.3
YES = torch.tensor(True)


def codebook() -> nn.Embedding:
    generator = torch.Generator().manual_seed(0)
    return nn.Embedding(CODES, CHANNELS, _weight=torch.randn(CODES, CHANNELS, generator=generator))


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Encoder's output and noise of 4 images, [4, 3, 2, 2] each, in few clusters, so that codes die."""
    generator = torch.Generator().manual_seed(100 + step)
    hidden = torch.randn(4, CHANNELS, 2, 2, generator=generator) * 0.1 + torch.tensor([-1.0, 0.0, 2.0])[:, None, None]
    return hidden.requires_grad_(), torch.randn(4, CHANNELS, 2, 2, generator=generator)


def statistics(bottleneck: VectorQuantised, hidden: Tensor, noise: Tensor, *, parts: int = 1) -> CodeStatistics:
    found = [
        bottleneck(part, drawn).statistics for part, drawn in zip(hidden.chunk(parts), noise.chunk(parts), strict=True)
    ]
    return CodeStatistics.merge([part for part in found if part is not None])


@pytest.mark.parametrize("from_scratch", [True, False])
def test_codes_are_those_of_plain_loops(from_scratch: bool) -> None:
    bottleneck = VectorQuantised(codebook(), decay=DECAY)
    assert bottleneck.begin_training(from_scratch=from_scratch) is bottleneck.usage
    codes = [code.tolist() for code in codebook().weight]
    start = 0.0 if from_scratch else 1 / CODES
    usage = [start] * CODES
    sums = [[start * value for value in code] for code in codes]
    restarts = 0
    for step in range(6):
        hidden, noise = batch(step)
        places = hidden.detach().permute(0, 2, 3, 1).reshape(-1, CHANNELS).tolist()
        ranks = noise[:, 0].flatten().tolist()
        taken = [
            min(range(CODES), key=lambda j: sum((a - b) ** 2 for a, b in zip(place, codes[j], strict=True)))
            for place in places
        ]
        order = sorted(range(len(places)), key=lambda i: -ranks[i])
        for j in range(CODES):
            own = [place for place, code in zip(places, taken, strict=True) if code == j]
            usage[j] = DECAY * usage[j] + (1 - DECAY) * len(own) / len(places)
            for c in range(CHANNELS):
                sums[j][c] = DECAY * sums[j][c] + (1 - DECAY) * sum(place[c] for place in own) / len(places)
            if usage[j] > 0:
                codes[j] = [value / usage[j] for value in sums[j]]
        for rank, j in enumerate(j for j in range(CODES) if usage[j] < DEAD / CODES):
            if rank < len(places):
                codes[j], usage[j] = places[order[rank]], 1 / CODES
                sums[j] = [value / CODES for value in codes[j]]
                restarts += 1
        bottleneck.learn(statistics(bottleneck, hidden, noise), finite=YES)
        torch.testing.assert_close(bottleneck.codes, torch.tensor(codes), rtol=1e-4, atol=1e-5)
    assert restarts > 0


def test_how_a_batch_is_cut_changes_nothing_but_rounding() -> None:
    whole, cut = (VectorQuantised(codebook(), decay=DECAY) for _ in range(2))
    for bottleneck in (whole, cut):
        bottleneck.begin_training(from_scratch=True)
    for step in range(4):
        hidden, noise = batch(step)
        one, many = statistics(whole, hidden, noise), statistics(cut, hidden, noise, parts=4)
        assert torch.equal(one.counts, many.counts)
        assert torch.equal(one.candidates, many.candidates)
        whole.learn(one, finite=YES)
        cut.learn(many, finite=YES)
        torch.testing.assert_close(cut.codes, whole.codes, rtol=0, atol=1e-6)
    assert not torch.equal(whole.codes, codebook().weight)


def test_a_step_that_is_not_finite_teaches_nothing() -> None:
    bottleneck = VectorQuantised(codebook(), decay=DECAY)
    state = bottleneck.begin_training(from_scratch=True)
    assert state is not None
    hidden, noise = batch(0)
    nan = statistics(bottleneck, hidden.detach().mul(float("nan")).requires_grad_(), noise)
    bottleneck.learn(nan, finite=~YES)
    assert torch.equal(bottleneck.codes, codebook().weight)
    assert all(torch.equal(value, torch.zeros_like(value)) for value in state.state_dict().values())


def test_gradients_pass_as_they_are_and_the_commitment_draws_to_the_code() -> None:
    bottleneck = VectorQuantised(codebook())
    hidden, noise = batch(0)
    latent = bottleneck(hidden, noise)
    slope = torch.linspace(-1, 1, hidden.numel()).view_as(hidden)
    (gradient,) = torch.autograd.grad((latent.z * slope).sum(), hidden, retain_graph=True)
    assert torch.equal(gradient, slope)
    (gradient,) = torch.autograd.grad(latent.losses["commitment"], hidden)
    torch.testing.assert_close(gradient, 2 * (hidden - latent.z).detach() / hidden.numel())
    with torch.no_grad():
        assert bottleneck(hidden, noise).statistics is None


def test_rounded_channels_are_the_nearest_codes_of_a_codebook() -> None:
    levels = [4, 3, 5]
    table = nn.Embedding(60, 3)
    bottleneck = FiniteScalar(table, levels=levels)
    assert torch.equal(table.weight, grid(levels))
    assert grid(levels).unique(dim=0).shape == (60, 3)
    assert grid(levels)[:, 0].unique().tolist() == pytest.approx([-1, -1 / 3, 1 / 3, 1])
    hidden = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).mul(2).requires_grad_()
    latent = bottleneck(hidden)
    assert torch.equal(latent.stored["indices"], VectorQuantised(table)(hidden).stored["indices"])
    (gradient,) = torch.autograd.grad(latent.losses["commitment"], hidden)
    assert torch.equal(gradient == 0, hidden.abs() <= 1)
    state = bottleneck.begin_training(from_scratch=True)
    assert state is not None
    assert latent.statistics is not None
    figures = bottleneck.measure(latent.statistics)
    share = latent.stored["indices"].flatten().bincount(minlength=60) / 128
    expected = torch.exp(-torch.xlogy(share, share).sum())
    torch.testing.assert_close(figures["codebook_perplexity"], expected)
    bottleneck.learn(latent.statistics, finite=YES)
    assert torch.equal(table.weight, grid(levels))
