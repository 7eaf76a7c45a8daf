"""Show an export's reconstructions through a Stable Diffusion img2img pipeline, without a download or any training.

    python scripts/img2img_tiny.py --vae runs/quickstart/export --data photographs --output img2img.png

The pipeline is diffusers' own class around a tiny random UNet. Its strength is one step in a thousand, so that what
comes out is the VAE's reconstruction, through the pipeline's own resizing, encoding, scaling and decoding.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionImg2ImgPipeline, UNet2DConditionModel
from PIL import Image

from ldm_vae import decode_latents, encode_images, load_autoencoder
from ldm_vae.evaluation.grid import save_grid
from ldm_vae.images.collection import open_collection
from ldm_vae.images.evaluation import EvaluationImages
from ldm_vae.images.transforms import to_image, to_tensor
from ldm_vae.metrics.reconstruction import psnr
from ldm_vae.models.families import family_of
from ldm_vae.system.pixels import to_pixels

STEPS = 1000
PROMPT_WIDTH = 8


def build_pipeline(autoencoder: AutoencoderKL) -> StableDiffusionImg2ImgPipeline:
    """Put the autoencoder into an img2img pipeline whose UNet is random and tiny, and takes a prompt of zeros."""
    torch.manual_seed(0)
    channels = autoencoder.config.latent_channels
    unet = UNet2DConditionModel(
        sample_size=64,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=PROMPT_WIDTH,
        attention_head_dim=8,
        norm_num_groups=4,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    pipeline = StableDiffusionImg2ImgPipeline(
        vae=autoencoder,
        unet=unet,
        scheduler=scheduler,
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def img2img(pipeline: StableDiffusionImg2ImgPipeline, photograph: Image.Image) -> Image.Image:
    """Run the last of a thousand steps: noise of 0.03 standard deviations goes into the latents, and out again."""
    prompt = torch.zeros(1, 1, PROMPT_WIDTH)
    return pipeline(
        image=photograph,
        prompt_embeds=prompt,
        num_inference_steps=STEPS,
        strength=1 / STEPS,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(0),
    ).images[0]


def read_photographs(source: str, *, num_images: int, resolution: int) -> list[Image.Image]:
    """Return the first readable photographs, cropped to squares of `resolution` pixels."""
    images = EvaluationImages(open_collection(source), channels=3, resolution=resolution)
    photographs = []
    for index in range(len(images)):
        sample = images[index]
        if sample.image is None:
            print(f"skipped {sample.name}: {sample.skipped.reason}")
        else:
            photographs.append(to_image(sample.image))
        if len(photographs) == num_images:
            break
    return photographs


def decibels(one: Image.Image, other: Image.Image) -> float:
    """PSNR between two pictures."""
    return psnr(to_pixels(to_tensor(one)[None]), to_pixels(to_tensor(other)[None])).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", required=True, help="export: a diffusers folder or a single LDM file")
    parser.add_argument("--data", required=True, help="folder of photographs")
    parser.add_argument("--output", required=True, help="picture to write (.png)")
    parser.add_argument("--num_images", type=int, default=4, help="photographs to show")
    parser.add_argument(
        "--resolution", type=int, default=256, help="side of the squares they are cropped to, in pixels"
    )
    options = parser.parse_args()

    autoencoder = load_autoencoder(options.vae)
    if autoencoder.config.in_channels != 3:
        raise ValueError(f"--vae: {options.vae} is for {autoencoder.config.in_channels} channels; img2img is for RGB")
    factor = family_of(autoencoder).spatial_factor
    if options.resolution % factor:
        raise ValueError(f"--resolution: the model's factor {factor} must divide it")
    photographs = read_photographs(options.data, num_images=options.num_images, resolution=options.resolution)
    pipeline = build_pipeline(autoencoder)

    rows = []
    for photograph in photographs:
        shown = img2img(pipeline, photograph)
        reconstruction = decode_latents(autoencoder, encode_images(autoencoder, photograph))[0]
        rows.append([photograph, shown])
        print(
            f"pipeline {decibels(photograph, shown):.2f} dB, VAE alone {decibels(photograph, reconstruction):.2f} dB "
            f"from the photograph; {decibels(reconstruction, shown):.2f} dB from each other"
        )
    save_grid(Path(options.output), rows, titles=["photograph", "img2img"])
    print(options.output)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"img2img_tiny: {error}")
