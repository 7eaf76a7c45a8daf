"""An autoencoder at work without training: on this process's device, at its fastest, encoding and decoding batches."""

from __future__ import annotations

import os
from contextlib import ExitStack
from types import TracebackType

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ldm_vae.models.autoencoder import encode_moments
from ldm_vae.models.precision import MixedPrecision, autocast, use_bf16


def local_device() -> torch.device:
    """This process's device: the GPU of its local rank where a launcher set one, the first GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    return torch.device("cpu")


class InferenceAutoencoder:
    """An autoencoder with channels_last weights, encoding and decoding without gradients.

    Use it as a context manager: under bf16 autocast the weights are then rounded once, not for each batch.

    Args:
        autoencoder: moved to the device.
        mixed_precision: auto, no or bf16.
        device: None: `local_device()`.
        tile: encode and decode in overlapping tiles, which are blended: bounded memory, but not the same result.
    """

    def __init__(
        self,
        autoencoder: AutoencoderKL,
        *,
        mixed_precision: MixedPrecision,
        device: torch.device | None = None,
        tile: bool = False,
    ) -> None:
        self.device = device or local_device()
        self.bf16 = use_bf16(mixed_precision, device=self.device)
        self.autoencoder = autoencoder.eval().to(self.device, memory_format=torch.channels_last)
        self.tile = tile
        if tile:
            autoencoder.enable_tiling()
        self._contexts = ExitStack()

    def __enter__(self) -> InferenceAutoencoder:
        self._contexts.enter_context(torch.no_grad())
        self._contexts.enter_context(autocast(self.device, enabled=self.bf16))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._contexts.close()

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and standard deviation, float32 [B, c, h, w], of images [B, C, H, W] in [-1, 1]."""
        images = images.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        if self.tile:
            posterior = self.autoencoder.encode(images).latent_dist
            return posterior.mean.float(), posterior.std.float()
        return encode_moments(self.autoencoder, images)

    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The same for pixels [B, H, W, C], uint8, which take a quarter of the way to the device."""
        return self.encode(self.to_images(pixels))

    def to_images(self, pixels: Tensor) -> Tensor:
        """Pixels [B, H, W, C], uint8, as images [B, C, H, W] in [-1, 1] on the device, channels_last."""
        return pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2).to(torch.float32).div_(127.5).sub_(1)

    def decode(self, latents: Tensor) -> Tensor:
        """Images, float32 [B, C, H, W], about in [-1, 1], of the VAE's own (unscaled) latents [B, c, h, w]."""
        latents = latents.to(self.device, torch.float32, non_blocking=True)
        return self.autoencoder.decode(latents.contiguous(memory_format=torch.channels_last)).sample.float()
