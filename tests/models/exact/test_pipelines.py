"""Exact tiling inside real pipelines of diffusers: the pictures of the whole image, under a budget it doesn't fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, SanaPipeline, SanaTransformer2DModel
from PIL import Image

from ldm_vae.models.exact import disable_exact_tiling, enable_exact_tiling
from tests.exporting.tiny_pipelines import tiny_flux2_pipeline, tiny_pipeline, tiny_vae
from tests.models.exact.strips import gradient_picture, lively
from tests.models.exact.test_families import deep_compression
from tests.tiny import tiny_family

SIDE = 64
BUDGET = 2.6e-4  # GiB: less than half of what the whole image takes


def picture() -> Image.Image:
    """Return a photograph's stand-in whose upper half is dark and whose lower half is bright."""
    pixels = gradient_picture(height=SIDE, width=SIDE).clamp(-1, 1).add(1).mul(127.5).byte()
    return Image.fromarray(pixels[0].permute(1, 2, 0).numpy())


def run(pipeline: DiffusionPipeline, **arguments: Any) -> torch.Tensor:
    """Encode and decode by a pipeline whose denoiser predicts nothing; always with the same draws."""
    generator = torch.Generator().manual_seed(0)
    images = pipeline(**arguments, generator=generator, num_inference_steps=2, output_type="pt")[0]
    assert images.shape[-2:] == (SIDE, SIDE)
    return torch.as_tensor(images)


def stable_diffusion() -> tuple[DiffusionPipeline, dict[str, Any]]:
    """Return a pipeline that encodes a picture and decodes it."""
    pipeline = tiny_pipeline("StableDiffusionImg2ImgPipeline", vae=lively(tiny_vae()))
    return pipeline, {"prompt": "a photo of grass", "image": picture(), "strength": 0.5}


def stable_diffusion_with_a_tiny_autoencoder() -> tuple[DiffusionPipeline, dict[str, Any]]:
    """Return a pipeline with AutoencoderTiny, which it decodes by."""
    family = tiny_family(family="tiny", block_out_channels=[16, 16], latent_channels=4)
    pipeline = tiny_pipeline("StableDiffusionPipeline", vae=family.model)
    latents = torch.randn(1, 4, SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(0))
    return pipeline, {"prompt": "a photo of grass", "latents": latents, "height": SIDE, "width": SIDE}


def flux() -> tuple[DiffusionPipeline, dict[str, Any]]:
    """Return a pipeline that encodes a picture and decodes it."""
    pipeline = tiny_pipeline("FluxImg2ImgPipeline", vae=lively(tiny_vae(shift_factor=0.3)))
    size = {"height": SIDE, "width": SIDE}
    return pipeline, {"prompt": "a photo of grass", "image": picture(), "strength": 0.5, **size}


def flux2() -> tuple[DiffusionPipeline, dict[str, Any]]:
    """Return FLUX.2's, which encodes pictures to look at and decodes normalised patches."""
    family = tiny_family(family="flux2", latent_channels=3)
    pipeline = tiny_flux2_pipeline(lively(family.model))
    latents = torch.randn(1, 12, SIDE // 4, SIDE // 4, generator=torch.Generator().manual_seed(0))
    return pipeline, {
        "prompt_embeds": torch.zeros(1, 2, 8), "latents": latents, "height": SIDE, "width": SIDE,
        "image": picture(),
    }  # fmt: skip


def sana() -> tuple[DiffusionPipeline, dict[str, Any]]:
    """Return the pipeline of AutoencoderDC."""
    torch.manual_seed(0)
    transformer = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=4, num_layers=1, sample_size=16,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8,
    )  # fmt: skip
    pipeline = SanaPipeline(
        tokenizer=None, text_encoder=None, vae=lively(deep_compression().model), transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, {
        "prompt_embeds": torch.zeros(1, 2, 8), "prompt_attention_mask": torch.ones(1, 2), "guidance_scale": 1.0,
        "latents": torch.randn(1, 4, SIDE // 4, SIDE // 4, generator=torch.Generator().manual_seed(0)),
        "height": SIDE, "width": SIDE, "use_resolution_binning": False,
    }  # fmt: skip


@pytest.mark.parametrize("build", [stable_diffusion, stable_diffusion_with_a_tiny_autoencoder, flux, flux2, sana])
@torch.no_grad()
def test_pipelines_give_the_whole_image_s_pictures(build: Any) -> None:
    pipeline, arguments = build()
    whole = run(pipeline, **arguments)
    plans: list[str] = []
    enable_exact_tiling(pipeline.vae, memory_gib=BUDGET, tell=plans.append)
    strips = run(pipeline, **arguments)
    assert any(plan.startswith("decoder") for plan in plans)
    assert any(plan.startswith("encoder") for plan in plans) == ("image" in arguments)
    assert whole.std() > 1e-2
    torch.testing.assert_close(strips, whole, rtol=0, atol=1e-4)
    disable_exact_tiling(pipeline.vae)
    assert run(pipeline, **arguments).equal(whole)
