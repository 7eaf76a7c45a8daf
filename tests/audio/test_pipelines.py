"""An export of sounds inside diffusers' own AudioLDM pipelines: scaling, orientation and vocoder as they read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AudioLDM2Pipeline,
    AudioLDM2UNet2DConditionModel,
    AudioLDMPipeline,
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import (
    ClapTextConfig,
    ClapTextModelWithProjection,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5EncoderModel,
)

from ldm_vae.audio import HOP, read_mels, to_sound
from ldm_vae.exporting.export import ExportSummary
from tests.audio.sounds import FRAMES
from tests.audio.test_vocoding import tiny_vocoder

WIDTH = 8
UNET = {
    "block_out_channels": (4, 8), "layers_per_block": 1, "norm_num_groups": 2, "sample_size": 8, "in_channels": 3,
    "out_channels": 3, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 2, "cross_attention_dim": (4, 8),
}  # fmt: skip


def tiny_pipeline(kind: str, *, vae: AutoencoderKL, vocoder: nn.Module) -> tuple[DiffusionPipeline, dict[str, Any]]:
    """A pipeline that leaves latents as they are, and a prompt's embeddings for it."""
    scheduler = DDIMScheduler(trained_betas=[1e-7] + [0.0] * 999, clip_sample=False, set_alpha_to_one=False)
    parts: dict[str, Any] = {"vae": vae, "vocoder": vocoder, "scheduler": scheduler, "tokenizer": None}
    prompt = torch.ones(1, 2, WIDTH)
    if kind == "AudioLDMPipeline":
        unet = UNet2DConditionModel(
            **UNET, class_embed_type="simple_projection", projection_class_embeddings_input_dim=WIDTH,
            class_embeddings_concat=True,
        )  # fmt: skip
        clap = {"vocab_size": 8, "hidden_size": WIDTH, "intermediate_size": 8, "num_hidden_layers": 1,
                "num_attention_heads": 2, "projection_dim": WIDTH}  # fmt: skip
        text_encoder = ClapTextModelWithProjection(ClapTextConfig(**clap))
        pipeline = AudioLDMPipeline(**parts, unet=unet, text_encoder=text_encoder)
        arguments = {"prompt_embeds": prompt[:, 0]}
    else:
        unet = AudioLDM2UNet2DConditionModel(**UNET | {"cross_attention_dim": (WIDTH, WIDTH)})
        t5 = T5EncoderModel(T5Config(vocab_size=4, d_model=WIDTH, d_ff=8, d_kv=4, num_layers=1, num_heads=2))
        gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=4, n_embd=WIDTH, n_layer=1, n_head=2, n_positions=8))
        others = dict.fromkeys(("text_encoder", "projection_model", "tokenizer_2", "feature_extractor"))
        pipeline = AudioLDM2Pipeline(**parts, **others, unet=unet, text_encoder_2=t5, language_model=gpt2)
        arguments = {"prompt_embeds": prompt, "attention_mask": torch.ones(1, 2), "generated_prompt_embeds": prompt}
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, arguments


@pytest.mark.parametrize("kind", ["AudioLDMPipeline", "AudioLDM2Pipeline"])
def test_a_pipeline_makes_the_sound_that_was_encoded(kind: str, exported: ExportSummary, sounds: Path) -> None:
    vae = AutoencoderKL.from_pretrained(exported.output).eval()
    vocoder = tiny_vocoder()
    pipeline, prompt = tiny_pipeline(kind, vae=vae, vocoder=vocoder)
    mels = read_mels(sounds / "3.wav", frames=FRAMES)
    with torch.no_grad():
        z = vae.encode(mels[None]).latent_dist.mean
        expected = to_sound(vae.decode(z).sample[0], vocoder=vocoder)
    seconds = FRAMES * HOP / 16_000
    audio = pipeline(
        **prompt,
        latents=z * exported.scaling["scaling_factor"],
        audio_length_in_s=seconds,
        num_inference_steps=2,
        guidance_scale=1.0,
        output_type="pt",
    ).audios
    torch.testing.assert_close(audio[0], expected, rtol=1e-3, atol=1e-4)
    assert expected.std() > 0.01
