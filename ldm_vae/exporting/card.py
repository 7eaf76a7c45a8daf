"""The model card of an export: what it is, how latents are scaled, how good it is, where it may run in 16 bits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from ldm_vae.config.run import Config
from ldm_vae.config.views import shown_channels
from ldm_vae.evaluation.reading import MeasuredImages
from ldm_vae.exporting.data import MeasuredData
from ldm_vae.exporting.fields import config_of
from ldm_vae.exporting.headroom import FLOAT16_LIMIT, MARGIN
from ldm_vae.exporting.measurements import RunMeasurements
from ldm_vae.exporting.snippet import scaling_formula, usage_snippet
from ldm_vae.models.exact.check import NUM_STRIPS
from ldm_vae.models.families.family import Family
from ldm_vae.models.families.wrapped import ENCODER_IS_TRAINED
from ldm_vae.system.markdown import markdown_block, markdown_code, markdown_table, markdown_text
from ldm_vae.system.text import short_name
from ldm_vae.training.run_autoencoder import RunAutoencoder

PICTURE = "reconstruction.png"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LARGEST_LAYERS = 3


@dataclass(frozen=True, kw_only=True)
class CardContent:
    """What the card tells."""

    name: str
    """What the snippet loads: the hub id, or the folder's name."""
    exported: Family
    """As it is written."""
    variant: str | None
    """diffusers' word for the weights' type in the file's name, where it has one."""
    run: RunAutoencoder
    weights: str
    """Which weights of the run they are, in words."""
    measured: RunMeasurements
    versions: Mapping[str, str]
    license: str | None
    made_latents: str | None
    """The autoencoder that made the latents in place of an encoder that isn't trained; None where there is one."""

    @property
    def config(self) -> dict[str, Any]:
        """Of the exported model, as config.json has it."""
        return config_of(self.exported)

    @property
    def recipe(self) -> Config:
        """The run's settings."""
        return self.run.config

    @property
    def teacher(self) -> str:
        """What made the latents in place of an encoder that isn't trained, in Markdown."""
        return markdown_code(short_name(self.made_latents or ""))


def model_card(content: CardContent) -> ModelCard:
    """Return the card, its metadata as the hub reads them."""
    pretrained = content.recipe.model.pretrained
    data = ModelCardData(
        license=content.license,
        library_name="diffusers",
        base_model=pretrained if pretrained is not None and _is_hub_id(pretrained) else None,
        tags=[content.exported.tag or content.exported.class_name().lower(), "vae", "latent-diffusion"],
    )
    sections = [
        f"# {markdown_text(content.name.rsplit('/', 1)[-1])}",
        _introduction(content),
        f"![original and reconstruction]({PICTURE})",
        "## Use\n\n" + markdown_block(_usage(content), language="python"),
        "## Latent scaling\n\n" + _scaling(content),
        "## Reconstruction\n\n" + _reconstruction(content),
        "## Other sizes\n\n" + _sizes(content),
        "## 16-bit types\n\n" + _precision(content),
        "## Training\n\n" + _training(content),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def _usage(content: CardContent) -> str:
    return usage_snippet(
        content.exported,
        name=content.name,
        variant=content.variant,
        mel_frames=content.recipe.data.mel_frames,
        value_range=content.measured.value_range,
        target_channels=content.recipe.data.target_channels,
    )


def _introduction(content: CardContent) -> str:
    config, exported = content.config, content.exported
    of_sounds = "mel spectrograms of sounds in AudioLDM's format, [1, frames, 64] as 1-channel images"
    images = f"{config['in_channels']}-channel images" if content.recipe.data.mel_frames is None else of_sounds
    if targets := content.recipe.data.target_channels:
        images += f", of which it makes channel{'s' if len(targets) > 1 else ''} {', '.join(map(str, targets))}"
    return (
        f"{exported.summary} for latent diffusion: {images}, a spatial factor of {exported.spatial_factor}, "
        f"{config['latent_channels']} latent channels. Trained and exported with ldm-vae; "
        f"`diffusers.{config['_class_name']}` loads it.{_numbers(content)}{_decoder_alone(content)}"
    )


def _decoder_alone(content: CardContent) -> str:
    """Say what an export is without an encoder, where it has none that is trained."""
    if content.exported.has_encoder:
        return ""
    return (
        f"\n\n**It only decodes**, the normalised latents of {content.teacher}, which taught it. Its encoder is there "
        f"because the class has one, with the weights that it began with (`{ENCODER_IS_TRAINED}` is false in "
        f"`config.json`, of which diffusers warns); encode with its teacher."
    )


def _numbers(content: CardContent) -> str:
    """Say which numbers images hold, where they are no pictures of 8 bits."""
    ends = [f"{end:g}" for end in content.measured.value_range]
    if not ends:
        return ""
    ranges = [f"{low} to {high}" for low, high in zip(ends[0::2], ends[1::2], strict=True)]
    which = ranges[0] if len(ranges) == 1 else "; ".join(f"channel {i}: {each}" for i, each in enumerate(ranges))
    view = content.recipe.view
    made = content.recipe.data.target_channels or range(content.exported.out_channels)
    shown = [made[channel] for channel in shown_channels(len(made), view)]
    return (
        f" Images are arrays of numbers, of which the range ({which}) becomes [-1, 1]; the picture shows channel "
        f"{', '.join(map(str, shown))}."
    )


def _scaling(content: CardContent) -> str:
    normalise, denormalise = scaling_formula(content.exported.scaling)
    measured = content.measured
    latents, read = measured.latents.summary, measured.latents.images
    columns = {"mean": latents.channel_mean, "std": latents.channel_std}
    if latents.channel_kl is not None:
        columns["KL (nats/element)"] = latents.channel_kl
    rows = zip(*columns.values(), strict=True)
    channels = markdown_table(
        [["channel", *columns], *([str(i), *(f"{value:.4f}" for value in row)] for i, row in enumerate(rows))]
    )
    data = _data(measured.latents_data)
    whose = "" if content.exported.has_encoder else f" ({content.teacher}'s, normalised)"
    formula = markdown_block(f"latents = {normalise}\nz = {denormalise}", language="python")
    return (
        f"{formula}\n\n"
        f"Measured on {read.num_images} images of {data} ({_skipped(read)}), cropped to "
        f"{_shapes(content)}, in float64 over all elements of the "
        f"posterior{whose}: mean {latents.mean:.6g}, standard deviation {latents.std:.6g}, 1/std "
        f"{latents.scaling_factor:.6g}. {latents.active_channels} of {len(latents.channel_mean)} channels are "
        f"active.\n\n{channels}"
    )


def _reconstruction(content: CardContent) -> str:
    rows = [["metric", "value", "protocol"]]
    for name, score in content.measured.metrics.items():
        value = str(score.value) if isinstance(score.value, int) else f"{score.value:.5g}"
        rows.append([name, f"{value} {score.unit}".strip(), score.protocol])
    read, data = content.measured.reconstructions.images, _data(content.measured.reconstructions_data)
    versions = ", ".join(f"{name} {number}" for name, number in content.versions.items())
    return (
        f"On {read.num_images} images of {data}, cropped to {_shapes(content)} ({_skipped(read)}; SHA-256 of their "
        f"pixels `{read.fingerprint[:16]}`), {versions}."
        f"\n\n{markdown_table(rows)}{_channel_table(content)}"
    )


def _shapes(content: CardContent) -> str:
    return " or ".join(f"{width}x{height}" for width, height in content.recipe.data.sizes)


def _channel_table(content: CardContent) -> str:
    figures = content.measured.image_channels
    if figures is None:
        return ""
    rows = [["channel", "PSNR (dB)", "mean", "standard deviation"]]
    channels = content.recipe.data.target_channels or range(content.exported.out_channels)
    for channel, values in zip(channels, zip(*figures.values(), strict=True), strict=True):
        rows.append([str(channel), *(f"{value:.6g}" for value in values)])
    return f"\n\nEach channel of the images, with the mean and deviation of its own values:\n\n{markdown_table(rows)}"


def _sizes(content: CardContent) -> str:
    strips = content.measured.strips
    errors = "" if strips.latent_error is None else f"{strips.latent_error:.1e} (encoder) and "
    return (
        f"The reconstruction was measured at {_shapes(content)} alone. Larger images in bounded memory: "
        f"`ldm_vae.enable_exact_tiling(vae, memory_gib=2)`. It was checked at {strips.width}x{strips.height} on a "
        f"mosaic of measured images: with every layer in {NUM_STRIPS} strips the values are at most "
        f"{errors}{strips.picture_error:.1e} (decoder) of their range from the whole image's, in float32."
    )


def _precision(content: CardContent) -> str:
    report = content.measured.precision
    rows = [["network", "layer", "largest magnitude", "part of float16's limit"]]
    for network in report.networks:
        for layer, magnitude in report.layers(network)[:_LARGEST_LAYERS]:
            rows.append([network, f"`{layer}`", f"{magnitude:.4g}", f"{magnitude / FLOAT16_LIMIT:.2%}"])
    errors = [["type", "finite", "PSNR against float32 (dB)", "largest error (of 255)"]]
    errors += [
        [name, "yes" if error.finite else "no", f"{error.psnr:.2f}", f"{error.max_error:.3g}"]
        for name, error in report.errors.items()
    ]
    if content.exported.has_encoder:
        latents = ["relative latent error", *(f"{error.latent_error:.2e}" for error in report.errors.values())]
        errors = [[*row, latent] for row, latent in zip(errors, latents, strict=True)]
    upcast = content.config.get("force_upcast")
    upcast = "" if upcast is None else f"`force_upcast` is {str(upcast).lower()}: "
    return (
        f"Measured on {report.num_images} images on {report.device}: the activations of float32 (float16 ends at "
        f"{FLOAT16_LIMIT:.0f}, bfloat16 at 3.4e38), and {' and '.join(report.networks)} computed in each type against "
        f"float32.\n\n"
        f"{markdown_table(rows)}\n\n{markdown_table(errors)}\n\n"
        f"{upcast}{content.measured.precision_statement} (Safe means "
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
    return f"{content.run.step} updates of the generator; {content.weights} weights. The recipe:\n\n{block}"


def _is_hub_id(source: str) -> bool:
    return _HUB_ID.fullmatch(source) is not None and not Path(source).expanduser().exists()


def _data(data: MeasuredData) -> str:
    return markdown_code(data.name) + (f" ({data.kind})" if data.kind else "")


def _skipped(read: MeasuredImages) -> str:
    return f"{len(read.skipped)} unreadable" if read.skipped else "none unreadable"
