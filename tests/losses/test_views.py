"""What networks for photographs see of images of other channels."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from ldm_vae.config.rules import FieldError
from ldm_vae.config.views import View, shown_channels, view_of
from ldm_vae.losses.perceptual import PerceptualDistance, unit_channels
from ldm_vae.system.pixels import seen


class Squares(nn.Module):
    """Features whose gradient tells the channels apart."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return [torch.cat([images, images.square(), images.roll(1, 1) * images], dim=1)]


def images(channels: int, seed: int = 0) -> Tensor:
    return torch.rand(2, channels, 6, 6, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def distance_of(channels: int, *, chosen: Sequence[int] = ()) -> PerceptualDistance:
    """The distance that a run would have."""
    view = view_of(channels, chosen=chosen)
    assert view is not None
    return PerceptualDistance(Squares(), **view.arguments)


def plain(x: Tensor, y: Tensor) -> Tensor:
    """The distance of RGB pictures, by its formula."""
    one, other = (unit_channels(Squares()(part)[0]) for part in (x, y))
    return (one - other).square().sum(1).mean(dim=(1, 2))


def over(colours: Tensor, alpha: Tensor, *, background: float) -> Tensor:
    """Lay colours in [0, 1] on a background, and return them in [-1, 1]."""
    return 2 * (alpha * colours + (1 - alpha) * background) - 1


def test_rgba_is_compared_over_black_and_white() -> None:
    x, y = images(4), images(4, seed=1).requires_grad_()
    distance = distance_of(4)
    unit = lambda image: ((image[:, :3] + 1) / 2, (image[:, 3:] + 1) / 2)  # noqa: E731
    expected = sum(plain(over(*unit(x), background=b), over(*unit(y), background=b)) for b in (0.0, 1.0)) / 2
    torch.testing.assert_close(distance(x, y), expected)
    (ours,), (theirs,) = (torch.autograd.grad(value.sum(), y) for value in (distance(x, y), expected))
    torch.testing.assert_close(ours, theirs)


def test_transparent_colours_do_not_count_and_opaque_ones_are_rgb() -> None:
    x, y = images(4), images(4, seed=1)
    x[:, 3] = y[:, 3] = -1
    assert distance_of(4)(x, y).abs().max() < 1e-6
    x[:, 3] = y[:, 3] = 1
    torch.testing.assert_close(distance_of(4)(x, y), plain(x[:, :3], y[:, :3]))


@pytest.mark.parametrize("chosen", [[3, 2, 1], [4]])
def test_chosen_channels_are_seen_and_no_others(chosen: list[int]) -> None:
    x, y = images(6), images(6, seed=1).requires_grad_()
    distance = distance_of(6, chosen=chosen)
    channels = chosen * (3 // len(chosen))
    torch.testing.assert_close(distance(x, y), plain(x[:, channels], y[:, channels]))
    (gradient,) = torch.autograd.grad(distance(x, y).sum(), y)
    moved = gradient.abs().amax(dim=(0, 2, 3)) > 0
    assert moved.tolist() == [channel in chosen for channel in range(6)]


def test_what_is_seen_is_never_guessed() -> None:
    assert view_of(1) == View((0,))
    assert view_of(3) == View((0, 1, 2))
    assert view_of(4) == View((0, 1, 2), alpha=3)
    assert view_of(4, numbers=True) is view_of(2) is view_of(5) is None
    assert torch.equal(seen(images(3))[0], images(3))
    assert seen(images(1))[0].shape == (2, 3, 6, 6)
    assert [shown_channels(n, view_of(n)) for n in (1, 2, 3, 4, 9)] == [
        (0,), (0,), (0, 1, 2), (0, 1, 2, 3), (0, 1, 2),
    ]  # fmt: skip
    for chosen in ([0, 1], [5], [0, 1, 5]):
        with pytest.raises(
            FieldError, match=r"loss\.perceptual_channels is \[.*name one channel or three, from 0 to 4"
        ):
            view_of(5, chosen=chosen, field="loss.perceptual_channels")
