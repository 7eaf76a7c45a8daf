"""An autoencoder that encodes and decodes batches at its fastest, on this process's device and without gradients."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ldm_vae.models.attention import fold_attention
from ldm_vae.models.blocks import speed_up_blocks
from ldm_vae.models.bottlenecks.bottleneck import Latent
from ldm_vae.models.exact import enable_exact_tiling, tell_plan
from ldm_vae.models.families.family import Family
from ldm_vae.models.families.parts import Half
from ldm_vae.models.graphs import CudaRecorder, Graphed, Network, Recorder
from ldm_vae.models.kernels.fused import use_kernels
from ldm_vae.models.precision import exact_float32
from ldm_vae.system.memory import keep_freed_memory
from ldm_vae.system.pixels import from_pixels

COMPILE_SWITCH = "LDM_VAE_COMPILE"


def local_device() -> torch.device:
    """Return this process's device: the GPU of the local rank that a launcher set, the first GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    return torch.device("cpu")


class InferenceAutoencoder:
    """An autoencoder that encodes and decodes batches, without gradients.

    Weights and activations are channels_last. With `bf16` the weights are rounded once, not for each batch. The last
    layers (the encoder's conv_out, quant_conv, post_quant_conv, the decoder's conv_out) stay float32: they cost
    little, and would round the result itself. Norms and convolutions add up in float32 in any case.

    Args:
        family: The model. It is moved to the device and changed in place; it can't be trained any more.
        bf16: Whether to compute in bf16 instead of exact float32.
        device: By default `local_device()`. A GPU becomes the process's current one, whose streams and events are
            meant where none is named.
        memory_gib: Memory of the device that an encode or decode may take beside the weights; larger images go through
            the network strip by strip, with the same result. None: no bound.
        tell: Called with a line for each size that is taken in strips.

    Raises:
        ValueError: The model can't be run under the bound.
    """

    def __init__(
        self,
        family: Family,
        *,
        bf16: bool,
        device: torch.device | None = None,
        memory_gib: float | None = None,
        tell: Callable[[str], None] = tell_plan,
    ) -> None:
        self.family = family.eval()
        family.model.requires_grad_(False)
        self.device = device or local_device()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        elif self.device.type == "cpu" and memory_gib is None:
            keep_freed_memory()
        use_kernels(self.device)
        if not bf16:
            exact_float32()
        for half in family.halves:
            if bf16:
                _round_weights(half)
            speed_up_blocks(half.network, overwrites=True)
        family.to(self.device, memory_format=torch.channels_last)
        self._encode: Network = family.encode
        self._decode: Network = family.decode
        if memory_gib is not None:
            enable_exact_tiling(family.model, memory_gib=memory_gib, tell=tell)
        elif self.device.type == "cuda":
            self._launch_less(CudaRecorder())

    def _launch_less(self, record: Recorder) -> None:
        """Fold what attention multiplies by, and record calls of shapes that come again.

        `LDM_VAE_COMPILE=on` has encoder and decoder compiled by torch too, once for each shape.
        """
        fold_attention(self.family.model)
        if os.environ.get(COMPILE_SWITCH, "off").lower() in ("on", "1", "yes", "true"):
            for half in self.family.halves:
                half.network.compile()
        self._encode = Graphed(self.family.encode, record=record)
        self._decode = Graphed(self.family.decode, record=record, pixels=self.family.spatial_factor**2)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the posterior's mean and standard deviation (None where nothing is random), float32 [B, c, h, w].

        Args:
            images: [B, C, H, W] in [-1, 1].
        """
        latent = self.encode_latent(images)
        return latent.mean, latent.stored.get("std")

    @torch.no_grad()
    def encode_latent(self, images: Tensor) -> Latent:
        """Return the whole latent, without noise, of images [B, C, H, W] in [-1, 1]."""
        images = images.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        if not self.family.has_encoder:
            return self.family.encode_latent(images)
        return self.family.bottleneck(self._encode(images))

    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encode pixels [B, H, W, C]; as uint8 they are a quarter of the bytes to bring to the device."""
        return self.encode(self.to_images(pixels))

    def to_images(self, pixels: Tensor) -> Tensor:
        """Return pixels [B, H, W, C] as images [B, C, H, W] in [-1, 1] on the device, channels_last.

        uint8 are the levels of a picture, float32 are in [-1, 1] already.
        """
        moved = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        return moved if moved.is_floating_point() else from_pixels(moved)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images, float32 [B, C, H, W], about in [-1, 1].

        Args:
            latents: [B, c, h, w], as the autoencoder itself makes them, without scaling.
        """
        latents = latents.to(self.device, torch.float32, non_blocking=True)
        return self._decode(latents.contiguous(memory_format=torch.channels_last))


def _round_weights(half: Half) -> None:
    """Make an encoder or decoder bf16, but for its last convolution; it still takes and gives float32."""
    half.network.to(torch.bfloat16)
    half.last.to(torch.float32)
    for layer, dtype in ((half.first, torch.bfloat16), (half.last, torch.float32)):
        layer.register_forward_pre_hook(functools.partial(_take, dtype))


def _take(dtype: torch.dtype, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.to(dtype) for value in inputs)
