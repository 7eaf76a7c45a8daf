"""Real diffusers pipelines of a few thousand weights, built from configs without a download."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    DDIMScheduler,
    DiffusionPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from tests.tiny import tiny_autoencoder

SAMPLE_SIZE = 8
WORDS = ("<pad>", "<end>", "<unknown>", "a", "photo", "of", "grass")
WIDTH = 8
NOISE = 3.5e-4
"""Standard deviation of the noise that a pipeline adds to the latents: its square is what float32 tells from 0."""

UNET_CLASSES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")
XL_CLASSES = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline")
SD3_CLASSES = ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline")
FLUX_CLASSES = ("FluxPipeline", "FluxImg2ImgPipeline")


def tiny_vae(*, latent_channels: int = 4, widths: tuple[int, ...] = (8, 16), **config: Any) -> AutoencoderKL:
    """A random autoencoder whose posterior has next to no variance, and whose latents are not centred."""
    vae = tiny_autoencoder(widths=widths, latent_channels=latent_channels, **config)
    vae.quant_conv.weight.data[latent_channels:] = 0
    vae.quant_conv.bias.data[latent_channels:] = -30
    vae.quant_conv.bias.data[:latent_channels] = torch.linspace(-1, 2, latent_channels)
    vae.decoder.conv_out.weight.data *= 4  # contrast
    return vae.requires_grad_(False)


def tiny_pipeline(name: str, *, vae: AutoencoderKL, in_channels: int | None = None) -> DiffusionPipeline:
    """A pipeline of the class `name` that leaves latents as they are, up to `NOISE`.

    Its denoiser predicts zero and its schedule has next to no noise, so what enters the decoder is what the pipeline
    made of the picture, or of the latents, that it was given.
    """
    torch.manual_seed(0)
    in_channels = in_channels if in_channels is not None else denoiser_channels(name, vae.config.latent_channels)
    parts = _denoiser(name, in_channels=in_channels, latent_channels=vae.config.latent_channels) | _text(name)
    parts |= {"vqvae" if name == "LDMPipeline" else "vae": vae}
    if name in UNET_CLASSES:
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = getattr(diffusers, name)(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_flux2_pipeline(vae: AutoencoderKLFlux2) -> Flux2Pipeline:
    """A pipeline that leaves latents as they are: its denoiser predicts zero."""
    torch.manual_seed(0)
    transformer = Flux2Transformer2DModel(
        patch_size=1, in_channels=4 * vae.config.latent_channels, num_layers=1, num_single_layers=1,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=8, timestep_guidance_channels=8,
        axes_dims_rope=(2, 2, 2, 2),
    )  # fmt: skip
    torch.nn.init.zeros_(transformer.proj_out.weight)
    pipeline = Flux2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def denoiser_channels(name: str, latent_channels: int) -> int:
    """Input channels of the denoiser that goes with a latent."""
    return 4 * latent_channels if name in FLUX_CLASSES else latent_channels


def _denoiser(name: str, *, in_channels: int, latent_channels: int) -> dict[str, Any]:
    if name in SD3_CLASSES:
        transformer = SD3Transformer2DModel(
            sample_size=SAMPLE_SIZE, patch_size=1, in_channels=in_channels, out_channels=in_channels, num_layers=1,
            attention_head_dim=4, num_attention_heads=2, joint_attention_dim=2 * WIDTH, caption_projection_dim=8,
            pooled_projection_dim=2 * WIDTH, pos_embed_max_size=32,
        )  # fmt: skip
        return {"transformer": _still(transformer), "scheduler": FlowMatchEulerDiscreteScheduler(shift=1e-7)}
    if name in FLUX_CLASSES:
        transformer = FluxTransformer2DModel(
            patch_size=1, in_channels=in_channels, num_layers=1, num_single_layers=1, attention_head_dim=8,
            num_attention_heads=1, joint_attention_dim=2 * WIDTH, pooled_projection_dim=WIDTH,
            axes_dims_rope=(2, 2, 4),
        )  # fmt: skip
        return {"transformer": _still(transformer), "scheduler": FlowMatchEulerDiscreteScheduler(shift=1e-7)}
    betas = [NOISE**2] + [0.0] * 999
    scheduler = DDIMScheduler(trained_betas=betas, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    if name == "DiTPipeline":
        transformer = DiTTransformer2DModel(
            sample_size=SAMPLE_SIZE, num_layers=1, patch_size=2, attention_head_dim=4, num_attention_heads=2,
            in_channels=in_channels, out_channels=2 * in_channels, norm_num_groups=1, attention_bias=True,
            activation_fn="gelu-approximate", num_embeds_ada_norm=1000, norm_type="ada_norm_zero",
            norm_elementwise_affine=False,
        )  # fmt: skip
        return {"transformer": _still(transformer), "scheduler": scheduler}
    size = {"sample_size": SAMPLE_SIZE, "in_channels": in_channels, "out_channels": latent_channels,
            "block_out_channels": (4, 8), "layers_per_block": 1, "norm_num_groups": 2}  # fmt: skip
    if name == "LDMPipeline":
        blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
        return {"unet": _still(UNet2DModel(**size, **blocks)), "scheduler": scheduler}
    blocks = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
              "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 2}  # fmt: skip
    if name in XL_CLASSES:
        blocks |= {"cross_attention_dim": 2 * WIDTH, "addition_embed_type": "text_time", "addition_time_embed_dim": 2,
                   "projection_class_embeddings_input_dim": 6 * 2 + WIDTH}  # fmt: skip
    else:
        blocks |= {"cross_attention_dim": WIDTH}
    return {"unet": _still(UNet2DConditionModel(**size, **blocks)), "scheduler": scheduler}


def _still(denoiser: torch.nn.Module) -> torch.nn.Module:
    """Make the prediction zero."""
    last = next(getattr(denoiser, name) for name in ("conv_out", "proj_out", "proj_out_2") if hasattr(denoiser, name))
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    return denoiser


def _text(name: str) -> dict[str, Any]:
    if name in ("DiTPipeline", "LDMPipeline"):
        return {}
    clip = {"vocab_size": len(WORDS), "hidden_size": WIDTH, "intermediate_size": 8, "projection_dim": WIDTH,
            "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 8,
            "eos_token_id": 1}  # fmt: skip
    parts: dict[str, Any] = {"tokenizer": _tokenizer()}
    if name in UNET_CLASSES:
        return parts | {"text_encoder": CLIPTextModel(CLIPTextConfig(**clip))}
    t5 = T5Config(vocab_size=len(WORDS), d_model=2 * WIDTH, d_ff=8, d_kv=4, num_layers=1, num_heads=2)
    if name in FLUX_CLASSES:
        parts |= {"text_encoder": CLIPTextModel(CLIPTextConfig(**clip))}
        return parts | {"tokenizer_2": _tokenizer(), "text_encoder_2": T5EncoderModel(t5)}
    second = CLIPTextModelWithProjection(CLIPTextConfig(**clip))
    if name in XL_CLASSES:
        parts |= {"text_encoder": CLIPTextModel(CLIPTextConfig(**clip))}
        return parts | {"tokenizer_2": _tokenizer(), "text_encoder_2": second}
    parts |= {"text_encoder": CLIPTextModelWithProjection(CLIPTextConfig(**clip))}
    parts |= {"tokenizer_2": _tokenizer(), "text_encoder_2": second}
    return parts | {"tokenizer_3": _tokenizer(), "text_encoder_3": T5EncoderModel(t5)}


def _tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unknown>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<end>", unk_token="<unknown>", model_max_length=8
    )
