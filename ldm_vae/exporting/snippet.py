"""Python on the model card that uses an export."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ldm_vae.images.bands import range_of
from ldm_vae.models.families.family import Family


def usage_snippet(
    exported: Family,
    *,
    name: str,
    variant: str | None,
    mel_frames: int | None,
    value_range: Sequence[float],
    target_channels: Sequence[int] = (),
) -> str:
    """Return Python that encodes and decodes a picture with the export, or decodes alone; a test runs it.

    Args:
        exported: The autoencoder as it is written.
        name: The hub id or folder that it is loaded from.
        variant: diffusers' word for the weights' type in the file's name, where it has one.
        mel_frames: Frames of a sound's mels; None where images are pictures or numbers.
        value_range: The range of the images' numbers; empty where they are pictures of 8 bits.
        target_channels: Channels of the images that the autoencoder makes; none: all.
    """
    load, dtype = json.dumps(name, ensure_ascii=not name.isprintable()), ""
    if variant is not None:
        load += f', variant="{variant}", torch_dtype=torch.float16'
        dtype = ".to(vae.dtype)"
    normalise, denormalise = scaling_formula(exported.scaling)
    kind = exported.class_name()
    if not exported.has_encoder:
        is_picture = mel_frames is None and not value_range and exported.out_channels in (1, 3, 4)
        return _decoding_snippet(exported, load=load, denormalise=denormalise, is_picture=is_picture)
    made_range = range_of(value_range, target_channels)
    imports, read, write = _reading(exported, mel_frames=mel_frames, value_range=value_range, made_range=made_range)
    return f"""{imports.replace("DIFFUSERS", kind)}

vae = {kind}.from_pretrained({load}).eval()
{read}{dtype}

with torch.no_grad():
    z = vae.{exported.encode_call}
    latents = {normalise}  # what a diffusion model trains on
    z = {denormalise}
    reconstruction = vae.decode(z.to(vae.dtype)).sample

{write}
"""


def _decoding_snippet(exported: Family, *, load: str, denormalise: str, is_picture: bool) -> str:
    """Return Python that decodes latents with an export whose encoder isn't trained."""
    channels, kind = exported.latent_channels * exported.patch_size**2, exported.class_name()
    imports = "from diffusers.image_processor import VaeImageProcessor\n" if is_picture else ""
    write = '\nVaeImageProcessor().postprocess(picture)[0].save("picture.png")\n' if is_picture else ""
    return f"""import torch
from diffusers import {kind}
{imports}
vae = {kind}.from_pretrained({load}).eval()
latents = torch.randn(1, {channels}, 32, 32)  # in place of what a diffusion model makes

with torch.no_grad():
    z = {denormalise}
    picture = vae.decode(z.to(vae.dtype)).sample  # [1, {exported.out_channels}, height, width], about in [-1, 1]
{write}"""


def _reading(
    exported: Family, *, mel_frames: int | None, value_range: Sequence[float], made_range: Sequence[float]
) -> tuple[str, str, str]:
    """Return Python that imports what is needed, reads `images`, and writes `reconstruction`."""
    channels, factor = exported.in_channels, exported.spatial_factor * exported.scaling.get("patch_size", 1)
    if mel_frames is not None:
        return (
            "import soundfile\nimport torch\nfrom diffusers import DIFFUSERS\n"
            "from ldm_vae.audio import SAMPLE_RATE, read_mels, to_sound",
            f'images = read_mels("sound.wav", frames={mel_frames})[None]',
            "sound = to_sound(reconstruction[0].float())  # or with vocoder=load_vocoder(FOLDER)\n"
            'soundfile.write("reconstruction.wav", sound.numpy(), SAMPLE_RATE)',
        )
    if not value_range:
        is_picture = exported.out_channels in (1, 3, 4)
        mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
        return (
            ("" if is_picture else "import numpy as np\n") + "import torch\nfrom diffusers import DIFFUSERS\n"
            "from diffusers.image_processor import VaeImageProcessor\nfrom PIL import Image",
            f"processor = VaeImageProcessor(vae_scale_factor={factor})\n"
            f'images = processor.preprocess(Image.open("photo.png").convert("{mode}"))',
            'processor.postprocess(reconstruction)[0].save("reconstruction.png")'
            if is_picture
            else 'np.save("reconstruction.npy", reconstruction[0].permute(1, 2, 0).float().numpy())  # in [-1, 1]',
        )
    low, high = _ends(value_range)
    of_made = "" if [*made_range] == [*value_range] else "low, high = {}, {}\n".format(*_ends(made_range))
    return (
        "import numpy as np\nimport torch\nfrom diffusers import DIFFUSERS",
        f"# rows and columns, of numbers that {factor} divides, and {channels} channels\n"
        'values = torch.from_numpy(np.load("image.npy").astype("float32"))\n'
        f"low, high = {low}, {high}\n"
        f"images = ((values.permute(2, 0, 1)[None] - low) / (high - low) * 2 - 1)",
        f"{of_made}values = (reconstruction.float().clamp(-1, 1) + 1) / 2 * (high - low) + low\n"
        'np.save("reconstruction.npy", values[0].permute(1, 2, 0).numpy())',
    )


def _ends(value_range: Sequence[float]) -> tuple[str, str]:
    """Return Python of the lowest and the highest values."""
    low, high = (f"torch.tensor({[*value_range][end::2]}).view(1, -1, 1, 1)" for end in (0, 1))
    return low, high


def scaling_formula(scaling: Mapping[str, Any]) -> tuple[str, str]:
    """Python from `z` to `latents` and back, with the numbers of its config.json."""
    factor, shift = scaling["scaling_factor"], scaling["shift_factor"]
    if side := scaling.get("patch_size"):
        mean, variance = (f"vae.bn.running_{name}.view(1, -1, 1, 1)" for name in ("mean", "var"))
        std = f"({variance} + vae.config.batch_norm_eps).sqrt()"
        patches = f"torch.nn.functional.pixel_unshuffle(z, {side})"
        return f"({patches} - {mean}) / {std}", f"torch.nn.functional.pixel_shuffle(latents * {std} + {mean}, {side})"
    if scaling["latents_mean"] is not None:
        mean, std = (f"torch.tensor(vae.config.{name}).view(1, -1, 1, 1)" for name in ("latents_mean", "latents_std"))
        return f"(z - {mean}) * {factor} / {std}", f"latents / {factor} * {std} + {mean}"
    if shift is not None:
        return f"(z - {shift}) * {factor}", f"latents / {factor} + {shift}"
    return f"z * {factor}", f"latents / {factor}"
