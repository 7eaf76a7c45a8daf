"""Train a small diffusion model on the latents that `ldm-vae encode` wrote, and draw pictures from it.

    ldm-vae encode --vae VAE --data PHOTOS --output LATENTS --resolution 128
    accelerate launch scripts/train_latent_diffusion.py --latents LATENTS --vae VAE --output runs/diffusion

An example to start from, not a recipe: diffusers' UNet2DModel, unconditional (or by class, where the latents have
labels), predicting noise (Ho et al., "Denoising diffusion probabilistic models", 2020).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DModel
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.utils import save_image
from tqdm import tqdm

from ldm_vae.latents.dataset import LatentDataset


def build_unet(dataset: LatentDataset, *, width: int) -> UNet2DModel:
    channels, height, _ = dataset.shape(0)
    levels = 3 if height % 4 == 0 else 1
    label_names = dataset.index["data"].get("label_names")
    return UNet2DModel(
        sample_size=height,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(width * factor for factor in (1, 2, 2)[:levels]),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")[:levels],
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")[-levels:],
        norm_num_groups=8,
        attention_head_dim=16,
        num_class_embeds=len(label_names) if label_names else None,
    )


@torch.no_grad()
def draw(unet: UNet2DModel, dataset: LatentDataset, *, count: int, device: torch.device) -> Tensor:
    """Return `count` latents, normalised, by 50 steps of DDIM."""
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(50)
    latents = torch.randn(count, *dataset.shape(0), device=device)
    classes = unet.config.num_class_embeds
    labels = None if classes is None else torch.arange(count, device=device) % classes
    for t in scheduler.timesteps:
        latents = scheduler.step(unet(latents, t, class_labels=labels).sample, t, latents).prev_sample
    return latents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", required=True, help="folder that `ldm-vae encode` wrote")
    parser.add_argument("--vae", required=True, help="the autoencoder, to decode the samples")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch_size", type=int, default=16, help="of each process")
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--num_samples", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    accelerator = Accelerator()
    set_seed(args.seed)  # the same first weights everywhere
    dataset = LatentDataset(args.latents, sample=True, normalize="channel", seed=args.seed)
    loader = DataLoader(dataset, batch_size=args.batch_size, shuffle=True, num_workers=2)
    unet = build_unet(dataset, width=args.width)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.learning_rate)
    unet, optimizer, loader = accelerator.prepare(unet, optimizer, loader)
    set_seed(args.seed, device_specific=True)  # other noise in each process
    scheduler = DDPMScheduler()

    losses: list[Tensor] = []
    progress = tqdm(total=args.steps, desc="train", disable=not accelerator.is_main_process)
    epoch = 0
    while len(losses) < args.steps:
        dataset.set_epoch(epoch)  # draw other posterior samples
        for batch in loader:
            latents = batch.latents  # [B, c, h, w], mean 0 and standard deviation 1 a channel
            noise = torch.randn_like(latents)
            t = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),), device=latents.device)
            labels = batch.label if dataset.index["data"].get("label_names") else None
            predicted = unet(scheduler.add_noise(latents, noise, t), t, class_labels=labels).sample
            loss = F.mse_loss(predicted, noise)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
            progress.update()
            if len(losses) % 50 == 0:
                progress.set_postfix(loss=f"{torch.stack(losses[-50:]).mean().item():.3f}")
            if len(losses) == args.steps:
                break
        epoch += 1
    progress.close()

    if accelerator.is_main_process:
        few = max(1, min(50, args.steps // 4))
        first, last = (torch.stack(part).mean().item() for part in (losses[:few], losses[-few:]))
        print(f"loss over the first {few} steps {first:.3f}, over the last {few} {last:.3f}")
        model = accelerator.unwrap_model(unet).eval()
        latents = draw(model, dataset, count=args.num_samples, device=accelerator.device)
        vae = AutoencoderKL.from_pretrained(args.vae).to(accelerator.device).eval()
        with torch.no_grad():
            images = vae.decode(dataset.denormalize(latents)).sample  # [N, C, H, W], about in [-1, 1]
        args.output.mkdir(parents=True, exist_ok=True)
        save_image(images.clamp(-1, 1) / 2 + 0.5, args.output / "samples.png", nrow=4)
        model.save_pretrained(args.output / "unet")
        print(f"samples: {args.output / 'samples.png'}; model: {args.output / 'unet'}")


if __name__ == "__main__":
    main()
