"""Train, export and use the autoencoders that latent diffusion runs on.

`load_autoencoder`, `encode_images`, `decode_latents`, `enable_exact_tiling`, `LatentDataset` and what explores a
latent space (`sample_pictures`, `interpolate_pictures`, `latent_direction`, `edit_pictures`, `nearest_latents`,
`augment_pictures`) are the surface for Python; they are imported when first used, so that `import ldm_vae` is instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ldm_vae.api import (
        augment_pictures,
        decode_latents,
        edit_pictures,
        encode_images,
        interpolate_latents,
        interpolate_pictures,
        latent_direction,
        nearest_latents,
        sample_pictures,
    )
    from ldm_vae.latents.dataset import LatentDataset
    from ldm_vae.models.exact import disable_exact_tiling, enable_exact_tiling
    from ldm_vae.models.load import load_autoencoder

__version__ = "0.1.0"
__all__ = [
    "LatentDataset",
    "__version__",
    "augment_pictures",
    "decode_latents",
    "disable_exact_tiling",
    "edit_pictures",
    "enable_exact_tiling",
    "encode_images",
    "interpolate_latents",
    "interpolate_pictures",
    "latent_direction",
    "load_autoencoder",
    "nearest_latents",
    "sample_pictures",
]

_MODULES = {
    "LatentDataset": "ldm_vae.latents.dataset",
    "augment_pictures": "ldm_vae.api",
    "decode_latents": "ldm_vae.api",
    "disable_exact_tiling": "ldm_vae.models.exact",
    "edit_pictures": "ldm_vae.api",
    "enable_exact_tiling": "ldm_vae.models.exact",
    "encode_images": "ldm_vae.api",
    "interpolate_latents": "ldm_vae.api",
    "interpolate_pictures": "ldm_vae.api",
    "latent_direction": "ldm_vae.api",
    "load_autoencoder": "ldm_vae.models.load",
    "nearest_latents": "ldm_vae.api",
    "sample_pictures": "ldm_vae.api",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'ldm_vae' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
