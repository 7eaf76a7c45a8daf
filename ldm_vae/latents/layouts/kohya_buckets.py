"""Into which bucket sd-scripts puts a picture, so that its latents have the shape that it looks for.

From `make_bucket_resolutions` and `BucketManager.select_bucket` in kohya's sd-scripts, with `bucket_no_upscale` off.
"""

from __future__ import annotations

from collections.abc import Sequence

Size = tuple[int, int]
"""(width, height) in pixels."""


def kohya_bucket_sizes(resolution: int, *, step: int, smallest: int, largest: int) -> list[Size]:
    """Return the sizes of sd-scripts' buckets, sorted.

    Args:
        resolution: Side of the square whose area no bucket exceeds.
        step: `bucket_reso_steps`: what divides all sides.
        smallest: `min_bucket_reso`, rounded down to a multiple of `step`.
        largest: `max_bucket_reso`, rounded up to one.
    """
    smallest, largest = smallest // step * step, -(-largest // step) * step
    square = resolution // step * step
    sizes = {(square, square)}
    for width in range(max(smallest, step), largest + 1, step):
        height = min(largest, resolution * resolution // width // step * step)
        if height >= max(smallest, step):
            sizes |= {(width, height), (height, width)}
    return sorted(sizes)


def kohya_bucket(picture: Size, *, sizes: Sequence[Size]) -> Size:
    """Return the bucket of a picture.

    It is the picture's own size where there is such a bucket, else the first of the nearest aspect ratio, width over
    height, by their plain difference.
    """
    if picture in sizes:
        return picture
    aspect = picture[0] / picture[1]
    return min(sizes, key=lambda size: abs(size[0] / size[1] - aspect))
