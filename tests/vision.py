"""Tiny vision networks with random weights, in folders as transformers writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

PATCH = 4
SIZES = {"hidden_size": 16, "num_attention_heads": 2, "image_size": 16, "patch_size": PATCH}
CLASSES: dict[str, tuple[str, dict[str, Any], str]] = {  # class, fields of its own, class of its image processor
    "dinov2": ("Dinov2", {"mlp_ratio": 2}, "BitImageProcessor"),
    "dinov2 with registers": ("Dinov2WithRegisters", {"mlp_ratio": 2, "num_register_tokens": 3}, "BitImageProcessor"),
    "dinov3": ("DINOv3ViT", {"intermediate_size": 32, "num_register_tokens": 2}, "DINOv3ViTImageProcessor"),
    "siglip": ("SiglipVision", {"intermediate_size": 32}, "SiglipImageProcessor"),
    "siglip2": ("Siglip2Vision", {"intermediate_size": 32, "num_patches": 16}, "Siglip2ImageProcessor"),
}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def save_vision(kind: str, folder: Path, *, blocks: int = 5) -> Any:
    """Write a network of random weights and its image processor into a folder; return the network, in eval mode."""
    import transformers

    name, fields, _ = CLASSES[kind]
    config = getattr(transformers, f"{name}Config")(**SIZES | fields | {"num_hidden_layers": blocks})
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}Model")(config).eval()
    with torch.no_grad():  # as initialised, the features of all places are nearly the same
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    statistics = IMAGENET if kind.startswith("dino") else {}
    own = {"patch_size": PATCH, "max_num_patches": 24} if kind == "siglip2" else {}
    processor_of(kind)(**statistics, **own).save_pretrained(folder)
    return model


def processor_of(kind: str) -> Any:
    """Return the class of a network's image processor, which had another name in transformers 4."""
    import transformers

    name = CLASSES[kind][2]
    return getattr(transformers, name, None) or getattr(transformers, f"{name}Fast")
