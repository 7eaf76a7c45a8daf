"""Batches of images to batches of what is stored of them, whoever asks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ldm_vae.config.commands.encode import EncodeOptions
from ldm_vae.config.rules import FieldError
from ldm_vae.encoding.device_jpegs import DeviceJpegs
from ldm_vae.encoding.plan import stored_shape
from ldm_vae.encoding.preprocessing import ImageBatch
from ldm_vae.encoding.writer import EncodedBatch
from ldm_vae.images.guard import UnreadableImage
from ldm_vae.models.inference import InferenceAutoencoder


class ShardEncoder:
    """Runs the encoder on images in eight bits, with the mirrored ones where they are wanted.

    Args:
        options: What the encode was asked for.
        mode: What is stored of an image.
        encoder: The autoencoder, on its device.
    """

    def __init__(self, options: EncodeOptions, *, mode: str, encoder: InferenceAutoencoder) -> None:
        self._options, self._mode, self._encoder = options, mode, encoder
        self._jpegs: DeviceJpegs | None = None
        if options.jpeg_decoder == "nvjpeg":
            channels = encoder.family.in_channels
            self._jpegs = DeviceJpegs(encoder.device, channels=channels, rules=options.reading_rules())

    def encode(self, batch: ImageBatch) -> EncodedBatch:
        """Encode a batch, without waiting for the device, but for JPEG files that it is to decode.

        Raises:
            UnreadableImage: An image can't be read, and `strict` is set.
            FieldError: The device's memory doesn't hold the batch.
        """
        with self._explained():
            batch = batch if self._jpegs is None else self._jpegs.decoded(batch)
        for row in batch.rows:
            if row.reason is not None and self._options.strict:
                raise UnreadableImage(row.source, row.reason)
        with self._explained():
            tensors = {} if batch.pixels is None else self._latents(batch.pixels, batch.noise)
        ready = None
        if self._encoder.device.type == "cuda":
            # contiguous first: the copy of a strided tensor would wait
            tensors = {name: values.contiguous().to("cpu", non_blocking=True) for name, values in tensors.items()}
            ready = torch.cuda.Event()
            ready.record()
        shape = stored_shape(batch.size, family=self._encoder.family, mode=self._mode)
        return EncodedBatch(
            stem=batch.stem, rows=batch.rows, tensors=tensors, shape=shape, last=batch.last, ready=ready,
            num_by_device=batch.num_by_device,
        )  # fmt: skip

    def _latents(self, pixels: Tensor, noise: Tensor | None) -> dict[str, Tensor]:
        images = self._encoder.to_images(pixels)
        tensors = self._stored(images, noise)
        if self._options.flip:
            flipped = self._stored(images.flip(-1), noise)
            tensors |= {f"{name}_flip": values for name, values in flipped.items()}
        return tensors

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Tell what to do where the device's memory is short."""
        try:
            yield
        except torch.OutOfMemoryError:
            options = self._options
            size = f"images of <resolution> {options.resolution}"
            if options.mel_frames is not None:
                size = f"sounds of <mel_frames> {options.mel_frames}"
            raise FieldError(
                f"<batch_size> is {options.batch_size}, and so many {size} don't fit in the device's memory; take "
                f"fewer, or bound the memory with <memory_gib>"
            ) from None

    def _stored(self, images: Tensor, noise: Tensor | None) -> dict[str, Tensor]:
        latent = self._encoder.encode_latent(images)
        if self._mode in ("moments", "indices"):
            return latent.stored
        if noise is None:
            return {"latents": latent.mean}
        return {"latents": latent.mean + latent.stored["std"] * noise.to(latent.mean.device, non_blocking=True)}
