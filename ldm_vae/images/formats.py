"""Which formats of pictures are read, and by which endings their files are known."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

from PIL import Image, features

_FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "PSD", "QOI", "SGI", "TGA", "TIFF",
    "WEBP",
)  # fmt: skip
"""Pillow's formats that are pictures in files of their own. Left out are those that start a program (EPS), draw by
instructions (WMF), or that nobody keeps photographs in and whose readers are seldom looked at."""

_EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff",
    ".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico", ".psd", ".sgi",
)  # fmt: skip

EXTRA = "the extra `formats` reads .heic and .jxl: pip install ldm-vae[formats]"
"""What messages say of files that only a plugin reads."""


ARRAY_EXTENSIONS = (".npy", ".npz")
"""Endings of arrays, which are images where a range is declared for their numbers."""

ARRAY_EXTRA = "the extra `arrays` reads the numbers: pip install ldm-vae[arrays]"
"""What messages say of TIFF files whose numbers are wanted."""


def _register_heif(module: object) -> None:
    module.register_heif_opener()  # type: ignore[attr-defined]


def _is_registered(module: object) -> None:
    """Leave a plugin alone that registers itself when it is imported."""


_PLUGINS: dict[str, tuple[str, Callable[[object], None], tuple[str, ...]]] = {
    "pillow_heif": ("HEIF", _register_heif, (".heic", ".heif", ".hif")),
    "pillow_jxl": ("JXL", _is_registered, (".jxl",)),
}
"""For each module: Pillow's name of the format, how the plugin is registered, and the endings of its files."""


def _load_formats() -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Register the plugins that are installed; return formats and endings that are read, and endings that aren't."""
    formats, extensions, missing = list(_FORMATS), list(_EXTENSIONS), []
    if features.check("avif"):
        extensions += [".avif"]
    else:
        missing += [".avif"]
    for module, (name, register, endings) in _PLUGINS.items():
        try:
            register(importlib.import_module(module))
        except ImportError:
            missing += endings
        else:
            formats.append(name)
            extensions += endings
    Image.init()
    return tuple(name for name in formats if name in Image.OPEN), tuple(extensions), tuple(missing)


FORMATS, IMAGE_EXTENSIONS, PLUGIN_EXTENSIONS = _load_formats()
"""Names of the formats that `Image.open` may use; endings, in lower case, of files that count as pictures; endings of
pictures that count once a plugin is installed."""


def image_extensions(*, arrays: bool) -> tuple[str, ...]:
    """Return the endings, in lower case, of files that count as pictures; with `arrays` those of arrays too."""
    return IMAGE_EXTENSIONS + ARRAY_EXTENSIONS if arrays else IMAGE_EXTENSIONS
