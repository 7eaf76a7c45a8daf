"""Train a small diffusion model on the latents that `ldm-vae encode` wrote, and draw pictures from it.

    ldm-vae encode --vae VAE --data PHOTOS --output LATENTS --resolution 128
    accelerate launch scripts/train_latent_diffusion.py --latents LATENTS --vae VAE --output runs/diffusion

An example to start from, not a recipe. Transformer, objective and sampler are those of `ldm-vae probe`
(docs/probe.md): flow matching, unconditional, or by class where the latents have labels.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.utils import save_image
from tqdm import tqdm

from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.models.load import load_vae
from ldm_vae.probing.flow import draw_latents, draw_times, flow_loss, time_shift
from ldm_vae.probing.network import LatentTransformer

SAMPLER_STEPS = 50


def network_arguments(dataset: LatentDataset, *, width: int, depth: int, patch: int) -> dict[str, int | None]:
    channels, side, _ = dataset.shape(0)
    label_names = dataset.index["data"].get("label_names")
    return {
        "channels": channels,
        "side": side,
        "patch": patch,
        "width": width,
        "depth": depth,
        "heads": max(1, width // 64),
        "num_classes": len(label_names) if label_names else None,
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", required=True, help="folder that `ldm-vae encode` wrote, of square pictures")
    parser.add_argument("--vae", required=True, help="the autoencoder, to decode the samples")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch_size", type=int, default=16, help="of each process")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--patch", type=int, default=2, help="latent pixels along a side of a token")
    parser.add_argument("--num_samples", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    accelerator = Accelerator()
    set_seed(args.seed)  # the same first weights everywhere
    dataset = LatentDataset(args.latents, sample=True, normalize="channel", seed=args.seed)
    loader = DataLoader(dataset, batch_size=args.batch_size, shuffle=True, num_workers=2, persistent_workers=True)
    arguments = network_arguments(dataset, width=args.width, depth=args.depth, patch=args.patch)
    network = LatentTransformer(**arguments)
    shift = time_shift(dataset[0].latents.numel())
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.learning_rate, weight_decay=0.0)
    network, optimizer, loader = accelerator.prepare(network, optimizer, loader)
    set_seed(args.seed, device_specific=True)  # other noise in each process

    losses: list[Tensor] = []
    progress = tqdm(total=args.steps, desc="train", disable=not accelerator.is_main_process)
    epoch = 0
    while len(losses) < args.steps:
        dataset.set_epoch(epoch)  # draw other posterior samples
        for batch in loader:
            latents = batch.latents  # [B, c, h, w], mean 0 and standard deviation 1 a channel
            times = draw_times(torch.randn(len(latents), device=latents.device), shift=shift)
            velocity = partial(network, labels=batch.label if arguments["num_classes"] else None)
            loss = flow_loss(velocity, latents, torch.randn_like(latents), times)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(network.parameters(), 1.0)
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
        model = accelerator.unwrap_model(network).eval()
        args.output.mkdir(parents=True, exist_ok=True)
        images = draw(model, dataset, vae=args.vae, num_images=args.num_samples, classes=arguments["num_classes"])
        save_image(images.clamp(-1, 1) / 2 + 0.5, args.output / "samples.png", nrow=4)
        save_file(model.state_dict(), args.output / "transformer.safetensors")
        (args.output / "transformer.json").write_text(json.dumps(arguments, indent=1) + "\n")
        print(f"samples: {args.output / 'samples.png'}; model: {args.output / 'transformer.safetensors'}")


def draw(
    model: LatentTransformer, dataset: LatentDataset, *, vae: str, num_images: int, classes: int | None
) -> Tensor:
    """Return images [N, C, H, W], about in [-1, 1]: latents that noise flows back to, of one class after the other."""
    device = next(model.parameters()).device
    noise = torch.randn(num_images, *dataset.shape(0), device=device)
    labels = torch.arange(num_images, device=device) % classes if classes else None
    shift = time_shift(noise[0].numel())
    latents = draw_latents(partial(model, labels=labels), noise, steps=SAMPLER_STEPS, shift=shift)
    return load_vae(vae, needs_scaling=False).family.to(device).decode(dataset.denormalize(latents))


if __name__ == "__main__":
    main()
