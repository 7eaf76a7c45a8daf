"""Which channels of an image networks for photographs see, and grids of pictures show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ldm_vae.config.rules import FieldError, require


@dataclass(frozen=True)
class View:
    """What a network for photographs sees of an image."""

    channels: tuple[int, ...]
    """Three channels, taken for red, green and blue, or one, which is repeated."""
    alpha: int | None = None
    """Channel that says how opaque a pixel is. The others are multiplied by it, over black and over white."""

    @property
    def arguments(self) -> dict[str, Any]:
        """The fields as arguments of what sees by them."""
        return {"channels": self.channels, "alpha": self.alpha}


RGB, GREY = View((0, 1, 2)), View((0,))


def view_of(
    num_channels: int,
    *,
    chosen: Sequence[int] = (),
    numbers: bool = False,
    targets: Sequence[int] = (),
    field: str = "perceptual_channels",
) -> View | None:
    """Return what is seen of images, or None where that has to be chosen.

    Without a choice grey is grey, three channels are red, green and blue, and of pictures the fourth is alpha. Four
    channels of numbers in a declared range, or in an order of their own, may be anything.

    Args:
        num_channels: Channels of the images.
        chosen: Those that are to be seen, counted from 0.
        numbers: Whether the images' channels are numbers in a declared range, instead of pictures'.
        targets: Which channels of files these are, in order; none: all.
        field: The option that gives `chosen`, for the error.

    Raises:
        FieldError: The images have no such channels.
    """
    if not chosen:
        if num_channels == 4 and not numbers and [*targets] in ([], [0, 1, 2, 3]):
            return View((0, 1, 2), alpha=3)
        return {1: GREY, 3: RGB}.get(num_channels)
    require(
        len(chosen) in (1, 3) and all(0 <= channel < num_channels for channel in chosen),
        f"<{field}> is {[*chosen]}; name one channel or three, from 0 to {num_channels - 1}",
    )
    return View(tuple(chosen))


def photographs_view(num_channels: int, *, numbers: bool, targets: Sequence[int] = ()) -> View:
    """Return what is seen of images that are like photographs, by `view_of` without a choice.

    Raises:
        FieldError: That isn't known.
    """
    view = view_of(num_channels, numbers=numbers, targets=targets)
    if view is None:
        name = "target_channels" if targets else "value_range"
        raise FieldError(
            f"<{name}>: which of {num_channels} channels a photograph would have isn't known, so their samples can't "
            f"be compared; `evaluate` takes perceptual_channels"
        )
    return view


def shown_channels(num_channels: int, view: View | None) -> tuple[int, ...]:
    """Return the channels that a picture of an image shows: those seen and alpha, else the first three, or the first.

    Args:
        num_channels: Channels of the image.
        view: What networks see of it, if anything.
    """
    if view is not None:
        return view.channels if view.alpha is None else (*view.channels, view.alpha)
    return (0, 1, 2) if num_channels >= 3 else (0,)
