"""JPEG files decoded where the encoder is, cropped and resized there as Pillow does it."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm_vae.config.reading import ReadingRules
from ldm_vae.config.rules import FieldError, require
from ldm_vae.encoding.preprocessing import ImageBatch, picture_pixels
from ldm_vae.images.decoding import decode_image, read_crop
from ldm_vae.images.guard import UnreadableImage
from ldm_vae.images.jpegs import JpegFiles
from ldm_vae.images.resampling import resize_pixels
from ldm_vae.images.transforms import Box, Size
from ldm_vae.system.text import first_line

LARGEST_ERROR = 4
"""Levels that a device's decoder may differ from Pillow at a smooth picture, before it is used at all."""


def require_cuda(device_type: str, *, asked: str) -> None:
    """Raise `FieldError` unless nvJPEG can decode on such a device.

    Args:
        device_type: The kind of the autoencoder's device, such as cuda.
        asked: Who asks for it: the beginning of the message.
    """
    require(
        device_type == "cuda",
        f"{asked}, which takes a CUDA device, and the autoencoder's here is the {device_type.upper()}; leave it out",
    )


class DeviceJpegs:
    """Decodes the files of batches on a device by torchvision: by nvJPEG on CUDA, by libjpeg-turbo on the CPU.

    What the device can't decode is left to Pillow. Before anything is decoded, a picture's result is compared with
    Pillow's.

    Args:
        device: Where to decode.
        channels: Channels that pictures are to have.
        rules: What a picture may cost that is left to Pillow.

    Raises:
        FieldError: The device or torchvision can't decode, or gives another picture.
    """

    def __init__(self, device: torch.device, *, channels: int, rules: ReadingRules) -> None:
        self._device, self._channels, self._rules = device, channels, rules
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._check()

    def decoded(self, batch: ImageBatch) -> ImageBatch:
        """Return a batch whose files are pixels too, all on the device; rows of files that are bad say why."""
        if batch.jpegs is None:
            return batch
        with self._on_own_stream():
            decoded = self._with_pixels(batch, batch.jpegs)
        if self._stream is not None and decoded.pixels is not None:
            decoded.pixels.record_stream(torch.cuda.current_stream(self._device))
        return decoded

    @contextmanager
    def _on_own_stream(self) -> Iterator[None]:
        """Work on a CUDA stream that is idle at first, and have the current stream wait for what comes of it.

        torchvision decodes on a stream of its own, into memory that is free for whichever stream is current, without
        waiting for what that one has still to do in it. Nothing is left to do on an idle stream.
        """
        if self._stream is None:
            yield
            return
        self._stream.synchronize()
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def _with_pixels(self, batch: ImageBatch, files: JpegFiles) -> ImageBatch:
        rows = [row for row in batch.rows if row.reason is None]
        images: dict[int, Tensor] = {}
        if batch.pixels is not None:
            there = [place for place in range(len(rows)) if place not in files.places]
            images |= zip(there, batch.pixels.to(self._device, non_blocking=True), strict=True)
        contents, num_by_device = list(files.content.split(files.lengths)), 0
        for place, content, picture, (width, height), box in zip(
            files.places, contents, self._pictures(contents), files.sizes, files.boxes, strict=True
        ):
            if picture is not None and picture.shape[1:] == (height, width):
                images[place] = resize_pixels(picture, box, size=batch.size).permute(1, 2, 0)
                num_by_device += 1
                continue
            try:
                images[place] = self._by_pillow(content, box, name=rows[place].source, size=batch.size)
            except UnreadableImage as error:
                rows[place].reason, rows[place].size = error.reason, None
        kept = sorted(images)
        return replace(
            batch,
            pixels=torch.stack([images[place] for place in kept]) if kept else None,
            noise=batch.noise[kept] if batch.noise is not None and kept else None,
            jpegs=None,
            num_by_device=num_by_device,
        )

    def _pictures(self, contents: list[Tensor]) -> list[Tensor | None]:
        """Decode files at once; where that fails, one by one, to find those that can't be decoded."""
        try:
            return list(self._decode(contents))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            return [None] if len(contents) == 1 else [self._pictures([content])[0] for content in contents]

    def _decode(self, contents: list[Tensor]) -> list[Tensor]:
        from torchvision.io import ImageReadMode, decode_jpeg  # which torchvision means to leave out some day

        mode = ImageReadMode.GRAY if self._channels == 1 else ImageReadMode.RGB
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            found: list[Tensor] = decode_jpeg(contents, mode=mode, device=self._device)
        return found

    def _by_pillow(self, content: Tensor, box: Box, *, name: str, size: Size) -> Tensor:
        """Return the part of a picture that the device can't decode, as pixels [H, W, C]."""
        part = read_crop(
            content.numpy().tobytes(),
            channels=self._channels,
            resolution=size,
            box_of=lambda _: box,
            name=name,
            rules=self._rules,
        )
        return picture_pixels(part, channels=self._channels).to(self._device)

    def _check(self) -> None:
        """Compare a smooth picture with Pillow's."""
        ramp = np.arange(64, 160, 2, dtype=np.uint8)
        rising, falling = np.meshgrid(ramp, ramp[:32], indexing="xy")
        file = io.BytesIO()
        Image.fromarray(np.stack([rising, rising[:, ::-1], falling], axis=-1)).save(file, "JPEG", quality=95)
        channels = 1 if self._channels == 1 else 3  # files for images with alpha are Pillow's
        expected = decode_image(file.getvalue(), channels=channels)
        assert isinstance(expected, Image.Image)
        try:
            with self._on_own_stream():
                (found,) = self._decode([torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)])
        except (RuntimeError, ImportError) as error:
            raise FieldError(
                f"<jpeg_decoder> is nvjpeg, but torchvision {version('torchvision')} decodes no JPEG files on "
                f"{self._device} ({first_line(error)}); leave it out"
            ) from error
        pixels = picture_pixels(expected, channels=channels).permute(2, 0, 1)
        worst = int((found.cpu().short() - pixels.short()).abs().max()) if found.shape == pixels.shape else 255
        require(
            worst <= LARGEST_ERROR,
            f"<jpeg_decoder> is nvjpeg, which gives another picture than Pillow here, by {worst} levels; leave it out",
        )
