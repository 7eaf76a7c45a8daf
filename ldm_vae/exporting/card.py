"""The model card of an export: what it is, how latents are scaled, how good it is, where it may run in 16 bits."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from ldm_vae.config.run import Config
from ldm_vae.config.views import shown_channels
from ldm_vae.evaluation.measure import short_name
from ldm_vae.evaluation.reader import MeasuredImages
from ldm_vae.evaluation.results import Score
from ldm_vae.exporting.headroom import FLOAT16_LIMIT, MARGIN, PrecisionReport
from ldm_vae.metrics.latents import LatentSummary
from ldm_vae.models.exact.check import NUM_STRIPS, StripsCheck
from ldm_vae.system.markdown import markdown_block, markdown_code, markdown_table, markdown_text

PICTURE = "reconstruction.png"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LARGEST_LAYERS = 3
_TAGS = {"AutoencoderKL": "autoencoder-kl"}


@dataclass(frozen=True, kw_only=True)
class CardContent:
    """What the card tells."""

    name: str
    """What the snippet loads: the hub id, or the folder's name."""
    config: Mapping[str, Any]
    """Of the exported model."""
    scaling: Mapping[str, Any]
    """How its latents are normalised (`Family.scaling`)."""
    spatial_factor: int
    summary: str
    """What its class is."""
    encode_call: str
    """How `images` become `z`."""
    variant: str | None
    recipe: Config
    step: int
    weights: str
    latents: LatentSummary
    latents_data: str
    """Name of the images that the latents were measured on."""
    latents_kind: str
    """What they are to the run, such as `training images`; empty for images that the user named."""
    latents_read: MeasuredImages
    metrics: Mapping[str, Score]
    metrics_data: str
    metrics_kind: str
    metrics_read: MeasuredImages
    value_range: Sequence[float]
    """The range of the images' numbers; empty where they are pictures of 8 bits."""
    image_channels: Mapping[str, Sequence[float]] | None
    """`psnr`, `mean` and `std` of each channel of the images, where they were measured."""
    precision: PrecisionReport
    precision_statement: str
    strips: StripsCheck
    versions: Mapping[str, str]
    license: str | None


def model_card(content: CardContent) -> ModelCard:
    """Return the card, its metadata as the hub reads them."""
    pretrained = content.recipe.model.pretrained
    data = ModelCardData(
        license=content.license,
        library_name="diffusers",
        base_model=pretrained if pretrained is not None and _is_hub_id(pretrained) else None,
        tags=[
            _TAGS.get(content.config["_class_name"], content.config["_class_name"].lower()),
            "vae",
            "latent-diffusion",
        ],
    )
    sections = [
        f"# {markdown_text(content.name.rsplit('/', 1)[-1])}",
        _introduction(content),
        f"![original and reconstruction]({PICTURE})",
        "## Use\n\n" + markdown_block(usage_snippet(content), language="python"),
        "## Latent scaling\n\n" + _scaling(content),
        "## Reconstruction\n\n" + _reconstruction(content),
        "## Other sizes\n\n" + _sizes(content),
        "## 16-bit types\n\n" + _precision(content),
        "## Training\n\n" + _training(content),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def usage_snippet(content: CardContent) -> str:
    """Python that encodes and decodes a picture with the export; a test runs it."""
    load, dtype = json.dumps(content.name, ensure_ascii=not content.name.isprintable()), ""
    if content.variant is not None:
        load += f', variant="{content.variant}", torch_dtype=torch.float16'
        dtype = ".to(vae.dtype)"
    normalise, denormalise = scaling_formula(content.scaling)
    kind = content.config["_class_name"]
    imports, read, write = _reading(content)
    return f"""{imports.replace("DIFFUSERS", kind)}

vae = {kind}.from_pretrained({load}).eval()
{read}{dtype}

with torch.no_grad():
    z = vae.{content.encode_call}
    latents = {normalise}  # what a diffusion model trains on
    z = {denormalise}
    reconstruction = vae.decode(z.to(vae.dtype)).sample

{write}
"""


def _reading(content: CardContent) -> tuple[str, str, str]:
    """Return Python that imports what is needed, reads `images`, and writes `reconstruction`."""
    channels, factor = content.config["in_channels"], content.spatial_factor * content.scaling.get("patch_size", 1)
    if content.recipe.data.mel_frames is not None:
        return (
            "import soundfile\nimport torch\nfrom diffusers import DIFFUSERS\n"
            "from ldm_vae.audio import SAMPLE_RATE, read_mels, to_sound",
            f'images = read_mels("sound.wav", frames={content.recipe.data.mel_frames})[None]',
            "sound = to_sound(reconstruction[0].float())  # or with vocoder=load_vocoder(FOLDER)\n"
            'soundfile.write("reconstruction.wav", sound.numpy(), SAMPLE_RATE)',
        )
    if not content.value_range:
        mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
        return (
            "import torch\nfrom diffusers import DIFFUSERS\nfrom diffusers.image_processor import VaeImageProcessor\n"
            "from PIL import Image",
            f"processor = VaeImageProcessor(vae_scale_factor={factor})\n"
            f'images = processor.preprocess(Image.open("photo.png").convert("{mode}"))',
            'processor.postprocess(reconstruction)[0].save("reconstruction.png")',
        )
    low, high = (f"torch.tensor({[*content.value_range][end::2]}).view(1, -1, 1, 1)" for end in (0, 1))
    return (
        "import numpy as np\nimport torch\nfrom diffusers import DIFFUSERS",
        f"# rows and columns, of numbers that {factor} divides, and {channels} channels\n"
        'values = torch.from_numpy(np.load("image.npy").astype("float32"))\n'
        f"low, high = {low}, {high}\n"
        f"images = ((values.permute(2, 0, 1)[None] - low) / (high - low) * 2 - 1)",
        "values = (reconstruction.float().clamp(-1, 1) + 1) / 2 * (high - low) + low\n"
        'np.save("reconstruction.npy", values[0].permute(1, 2, 0).numpy())',
    )


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


def _introduction(content: CardContent) -> str:
    config = content.config
    of_sounds = "mel spectrograms of sounds in AudioLDM's format, [1, frames, 64] as 1-channel images"
    images = f"{config['in_channels']}-channel images" if content.recipe.data.mel_frames is None else of_sounds
    return (
        f"{content.summary} for latent diffusion: {images}, a spatial factor of {content.spatial_factor}, "
        f"{config['latent_channels']} latent channels. Trained and exported with ldm-vae; "
        f"`diffusers.{config['_class_name']}` loads it.{_numbers(content)}"
    )


def _numbers(content: CardContent) -> str:
    """Say which numbers images hold, where they are no pictures of 8 bits."""
    ends = [f"{end:g}" for end in content.value_range]
    if not ends:
        return ""
    ranges = [f"{low} to {high}" for low, high in zip(ends[0::2], ends[1::2], strict=True)]
    which = ranges[0] if len(ranges) == 1 else "; ".join(f"channel {i}: {each}" for i, each in enumerate(ranges))
    view = content.recipe.view
    shown = shown_channels(content.config["in_channels"], view)
    return (
        f" Images are arrays of numbers, of which the range ({which}) becomes [-1, 1]; the picture shows channel "
        f"{', '.join(map(str, shown))}."
    )


def _scaling(content: CardContent) -> str:
    normalise, denormalise = scaling_formula(content.scaling)
    latents, read = content.latents, content.latents_read
    columns = {"mean": latents.channel_mean, "std": latents.channel_std}
    if latents.channel_kl is not None:
        columns["KL (nats/element)"] = latents.channel_kl
    rows = zip(*columns.values(), strict=True)
    channels = markdown_table(
        [["channel", *columns], *([str(i), *(f"{value:.4f}" for value in row)] for i, row in enumerate(rows))]
    )
    data = _data(content.latents_data, content.latents_kind)
    formula = markdown_block(f"latents = {normalise}\nz = {denormalise}", language="python")
    return (
        f"{formula}\n\n"
        f"Measured on {read.num_images} images of {data} ({_skipped(read)}), cropped to "
        f"{_shapes(content)}, in float64 over all elements of the "
        f"posterior: mean {latents.mean:.6g}, standard deviation {latents.std:.6g}, 1/std "
        f"{latents.scaling_factor:.6g}. {latents.active_channels} of {len(latents.channel_mean)} channels are "
        f"active.\n\n{channels}"
    )


def _reconstruction(content: CardContent) -> str:
    rows = [["metric", "value", "protocol"]]
    for name, score in content.metrics.items():
        value = str(score.value) if isinstance(score.value, int) else f"{score.value:.5g}"
        rows.append([name, f"{value} {score.unit}".strip(), score.protocol])
    read, data = content.metrics_read, _data(content.metrics_data, content.metrics_kind)
    versions = ", ".join(f"{name} {number}" for name, number in content.versions.items())
    return (
        f"On {read.num_images} images of {data}, cropped to {_shapes(content)} ({_skipped(read)}; SHA-256 of their "
        f"pixels `{read.fingerprint[:16]}`), {versions}."
        f"\n\n{markdown_table(rows)}{_channel_table(content)}"
    )


def _shapes(content: CardContent) -> str:
    return " or ".join(f"{width}x{height}" for width, height in content.recipe.data.sizes)


def _channel_table(content: CardContent) -> str:
    figures = content.image_channels
    if figures is None:
        return ""
    rows = [["channel", "PSNR (dB)", "mean", "standard deviation"]]
    for channel, values in enumerate(zip(*figures.values(), strict=True)):
        rows.append([str(channel), *(f"{value:.6g}" for value in values)])
    return f"\n\nEach channel of the images, with the mean and deviation of its own values:\n\n{markdown_table(rows)}"


def _sizes(content: CardContent) -> str:
    strips = content.strips
    return (
        f"The reconstruction was measured at {_shapes(content)} alone. Larger images in bounded memory: "
        f"`ldm_vae.enable_exact_tiling(vae, memory_gib=2)`. It was checked at {strips.width}x{strips.height} on a "
        f"mosaic of measured images: with every layer in {NUM_STRIPS} strips the values are at most "
        f"{strips.latent_error:.1e} (encoder) and {strips.picture_error:.1e} (decoder) of their range from the whole "
        f"image's, in float32."
    )


def _precision(content: CardContent) -> str:
    report = content.precision
    rows = [["network", "layer", "largest magnitude", "part of float16's limit"]]
    for network in ("encoder", "decoder"):
        for layer, magnitude in report.layers(network)[:_LARGEST_LAYERS]:
            rows.append([network, f"`{layer}`", f"{magnitude:.4g}", f"{magnitude / FLOAT16_LIMIT:.2%}"])
    errors = [["type", "finite", "PSNR against float32 (dB)", "largest error (of 255)", "relative latent error"]]
    for name, error in report.errors.items():
        numbers = [f"{error.psnr:.2f}", f"{error.max_error:.3g}", f"{error.latent_error:.2e}"]
        errors.append([name, "yes" if error.finite else "no", *numbers])
    upcast = content.config.get("force_upcast")
    upcast = "" if upcast is None else f"`force_upcast` is {str(upcast).lower()}: "
    return (
        f"Measured on {report.num_images} images on {report.device}: the activations of float32 (float16 ends at "
        f"{FLOAT16_LIMIT:.0f}, bfloat16 at 3.4e38), and encoder and decoder computed in each type against float32.\n\n"
        f"{markdown_table(rows)}\n\n{markdown_table(errors)}\n\n"
        f"{upcast}{content.precision_statement} (Safe means "
        f"finite, {MARGIN:g} times the largest magnitude within the limit, and an error below one 8-bit level.)"
    )


def _training(content: CardContent) -> str:
    recipe = asdict(content.recipe)
    kept = {name: recipe[name] for name in ("seed", "model", "data", "loss", "train")}
    for section, name in (("data", "train"), ("data", "validation"), ("model", "pretrained"),
                          ("model", "pretrained_config"), ("model", "teacher"),
                          ("loss", "perceptual_weights")):  # fmt: skip
        if kept[section][name] is not None:
            kept[section][name] = short_name(kept[section][name])
    kept["train"].pop("resume_from_checkpoint")
    text = yaml.safe_dump(kept, sort_keys=False, default_flow_style=None)
    block = markdown_block(text, language="yaml")
    return f"{content.step} updates of the generator; {content.weights} weights. The recipe:\n\n{block}"


def _is_hub_id(source: str) -> bool:
    return _HUB_ID.fullmatch(source) is not None and not Path(source).expanduser().exists()


def _data(name: str, kind: str) -> str:
    return markdown_code(name) + (f" ({kind})" if kind else "")


def _skipped(read: MeasuredImages) -> str:
    return f"{len(read.skipped)} unreadable" if read.skipped else "none unreadable"
