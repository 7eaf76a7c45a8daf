"""What one of several processes does that share an image: its encode and decode beside those of the whole."""

from __future__ import annotations

import torch
import torch.distributed as dist

from ldm_vae.models.exact import enable_exact_tiling
from tests.models.exact.strips import gradient_picture, lively, relative_error
from tests.models.exact.test_families import BUILDS, side_of
from tests.tiny import tiny_autoencoder


@torch.no_grad()
def share_images() -> None:
    """Compare an AutoencoderKL at several sizes and, on two processes, every family."""
    dist.init_process_group("gloo")
    autoencoder = lively(tiny_autoencoder(widths=[8, 8, 16], attention=[False, True, False]))
    for height, width in ((64, 40), (45, 39), (5, 8)):
        image = gradient_picture(height=height, width=width)
        enable_exact_tiling(autoencoder, memory_gib=1)
        expected = type(autoencoder.encoder).forward(autoencoder.encoder, image)
        decoded = type(autoencoder.decoder).forward(autoencoder.decoder, expected[:, :4])
        enable_exact_tiling(autoencoder, memory_gib=0.01, group=dist.group.WORLD)
        assert relative_error(autoencoder.encoder(image), expected) < 1e-5
        assert relative_error(autoencoder.decoder(expected[:, :4]), decoded) < 1e-5
    for name, build in BUILDS.items() if dist.get_world_size() == 2 else ():
        family = build()
        model = lively(family.model)
        image = gradient_picture(height=side_of(family, 45), width=side_of(family, 31))
        hidden = model.encoder(image)
        latents = 3 * hidden[:, : model.config.latent_channels]
        decoded = model.decoder(latents)
        enable_exact_tiling(model, memory_gib=0.01, group=dist.group.WORLD)
        assert relative_error(model.encoder(image), hidden) < 1e-5, name
        assert relative_error(model.decoder(latents), decoded) < 1e-5, name
    dist.barrier()  # gloo may end a process whose peer goes first
    dist.destroy_process_group()
