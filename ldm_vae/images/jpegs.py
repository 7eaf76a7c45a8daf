"""JPEG files that another decoder than Pillow may be given as they are, with the part of them that is wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ldm_vae.config.reading import ReadingRules
from ldm_vae.images.decoding import is_reduced, of_picture, orientation_of
from ldm_vae.images.limits import check_size
from ldm_vae.images.pixels import Units
from ldm_vae.images.transforms import Box, Size

_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
_SAMPLINGS = ((1, 1), (2, 1), (1, 2), (2, 2))
"""(horizontal, vertical) samples of luma for one of chroma: 4:4:4, 4:2:2, 4:4:0 and 4:2:0."""


@dataclass(frozen=True, kw_only=True)
class JpegCrop:
    """A JPEG file that isn't decoded yet, and the part of it that is wanted."""

    content: bytes
    size: Size
    """(width, height) of the picture, by the header."""
    box: Box
    """The part, in pixels of the picture."""


@dataclass(kw_only=True)
class JpegFiles:
    """Files of a batch end to end in one tensor, for each tensor costs a worker a descriptor."""

    content: Tensor  # [bytes], uint8
    lengths: list[int]
    """Bytes of each file."""
    sizes: list[Size]
    """(width, height) of each picture."""
    boxes: list[Box]
    """The part of each picture that is wanted."""
    places: list[int]
    """Which image of the batch each is."""

    @staticmethod
    def of(crops: Mapping[int, JpegCrop]) -> JpegFiles | None:
        """Put files together, by their places in the batch; None where there are none."""
        if not crops:
            return None
        return JpegFiles(
            content=torch.frombuffer(bytearray().join(crop.content for crop in crops.values()), dtype=torch.uint8),
            lengths=[len(crop.content) for crop in crops.values()],
            sizes=[crop.size for crop in crops.values()],
            boxes=[crop.box for crop in crops.values()],
            places=list(crops),
        )


def jpeg_crop(
    source: bytes | str | Path,
    *,
    channels: int,
    resolution: Size,
    box_of: Callable[[Size], Box],
    name: str | None,
    rules: ReadingRules,
) -> JpegCrop | None:
    """Return a file that any JPEG decoder reads as Pillow does, up to rounding; None where Pillow is to decode it.

    Such a file is whole, upright, of 8 bits, and grey or of luma and chroma. Files of which Pillow would decode less
    than their full size are left to it, for that is less work and gives other pixels.

    Args:
        source: Path of the file, or its content.
        channels: Channels that the picture is to have.
        resolution: (width, height) that the part gets, in pixels.
        box_of: Gives the part for the picture's (width, height).
        name: What errors call it.
        rules: What the picture may cost.

    Raises:
        UnreadableImage: The file is missing, too large or no image; damage behind the header may pass.
    """
    if rules.reads_numbers or channels not in (1, 3):
        return None

    def plain(image: Image.Image, units: Units) -> JpegCrop | None:
        if not _is_plain(image):
            return None
        box = box_of(image.size)
        if is_reduced(box, size=resolution):
            return None
        check_size(image, rules)
        file = image.fp  # type: ignore[attr-defined]
        file.seek(0)
        content = file.read()
        if content.rfind(_END_OF_IMAGE) < content.rfind(_START_OF_SCAN):  # it is cut off, which Pillow tells
            return None
        return JpegCrop(content=content, size=image.size, box=box)

    return of_picture(source, plain, name=name, rules=rules)


def _is_plain(image: Image.Image) -> bool:
    """Whether an opened file is a JPEG that all decoders take for the same picture, by its header."""
    if image.format != "JPEG" or image.mode not in ("L", "RGB") or orientation_of(image) != 1:
        return False
    if image.bits != 8 or image.info.get("adobe_transform", 1) != 1:  # type: ignore[attr-defined]
        return False
    components = image.layer  # type: ignore[attr-defined]
    if len(components) == 1:
        return True
    (_, *luma, _), *chroma = components
    return (
        [component[0] for component in components] == [1, 2, 3]  # otherwise decoders guess what the colours are
        and tuple(luma) in _SAMPLINGS
        and all((across, down) == (1, 1) for _, across, down, _ in chroma)
    )
