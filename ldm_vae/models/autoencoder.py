"""diffusers' AutoencoderKL: built, loaded, widened in its latent, and made trainable in one forward."""

from __future__ import annotations

import contextlib
import functools
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import (
    AttnDownEncoderBlock2D,
    AttnUpDecoderBlock2D,
    DownEncoderBlock2D,
    UNetMidBlock2D,
    UpDecoderBlock2D,
)
from diffusers.models.upsampling import Upsample2D
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldm_vae.config.model import ModelConfig
from ldm_vae.config.names import CheckpointingLevel
from ldm_vae.config.rules import require
from ldm_vae.models.blocks import speed_up_blocks
from ldm_vae.models.initialisation import quiet_
from ldm_vae.models.layouts.ldm import read_ldm_file

DEFAULT_LATENT_CHANNELS = 4
HUB_TIMEOUT_SECONDS = 10
LOGVAR_MIN, LOGVAR_MAX = -30.0, 20.0  # as published, and as diffusers clamps


def build_autoencoder(config: ModelConfig) -> AutoencoderKL:
    """Build the autoencoder of `config`, or load its `pretrained` one and give it the channels asked for.

    Returns:
        A float32 AutoencoderKL, parameters trainable.
    Raises:
        ValueError: naming the `model.` field, where the pretrained model doesn't fit the config.
    """
    if config.pretrained is None:
        autoencoder = AutoencoderKL(**architecture(config))
        return quiet_(autoencoder) if config.init == "quiet" else autoencoder
    autoencoder = load_autoencoder(config.pretrained, field="model.pretrained").train()
    require(
        autoencoder.config.in_channels == config.in_channels,
        f"model.in_channels is {config.in_channels}, but {config.pretrained} takes {autoencoder.config.in_channels}",
    )
    if config.latent_channels not in (None, autoencoder.config.latent_channels):
        autoencoder = with_latent_channels(autoencoder, config.latent_channels)
    return autoencoder


def architecture(config: ModelConfig) -> dict[str, object]:
    """AutoencoderKL's arguments for a model from scratch."""
    levels = range(len(config.block_out_channels))
    with_attention = [level in config.attention_levels for level in levels]
    down = ["AttnDownEncoderBlock2D" if attention else "DownEncoderBlock2D" for attention in with_attention]
    up = ["AttnUpDecoderBlock2D" if attention else "UpDecoderBlock2D" for attention in reversed(with_attention)]
    return {
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "down_block_types": tuple(down),
        "up_block_types": tuple(up),
        "block_out_channels": tuple(config.block_out_channels),
        "layers_per_block": config.layers_per_block,
        "latent_channels": config.latent_channels or DEFAULT_LATENT_CHANNELS,
        "norm_num_groups": config.norm_num_groups,
        "mid_block_add_attention": config.mid_block_add_attention,
        "use_quant_conv": config.use_quant_conv,
        "use_post_quant_conv": config.use_quant_conv,
    }


def load_autoencoder(source: str | Path, *, field: str = "vae") -> AutoencoderKL:
    """Load an AutoencoderKL in float32, in eval mode.

    >>> from ldm_vae import load_autoencoder
    >>> autoencoder = load_autoencoder("export")
    >>> autoencoder.config.latent_channels
    4

    Args:
        source: a diffusers folder (or a pipeline's, with a `vae` subfolder), a single LDM file, or a hub id.
        field: the option's name, for the error.
    Raises:
        ValueError: in one line, where there is no such thing or it is no AutoencoderKL.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return read_ldm_file(path)
    if path.is_dir():
        return _load_folder(path, field=field)
    return _load_from_hub(str(source), field=field)


def _load_from_hub(repository: str, *, field: str) -> AutoencoderKL:
    try:
        files = [file.rfilename for file in HfApi().model_info(repository, timeout=HUB_TIMEOUT_SECONDS).siblings or []]
        offline = False
    except (HfHubHTTPError, HFValidationError) as error:  # there is none of that name, or it is private
        raise ValueError(_unreachable(repository, field, error)) from None
    except Exception as error:  # no network, in the words of whichever client the hub library uses
        files, offline, reason = ["config.json", "vae/config.json"], True, error
    subfolders = [name for name, file in ((None, "config.json"), ("vae", "vae/config.json")) if file in files]
    for subfolder in subfolders:
        with contextlib.suppress(OSError, ValueError), warnings.catch_warnings(action="ignore"):
            return AutoencoderKL.from_pretrained(
                repository, subfolder=subfolder, local_files_only=offline, torch_dtype=torch.float32
            ).eval()
    raise ValueError(_unreachable(repository, field, reason if offline else "it holds no AutoencoderKL"))


def _unreachable(repository: str, field: str, reason: object) -> str:
    line = str(reason).strip().splitlines()[0]
    return f"{field}: '{repository}' is neither a folder or file here nor a model that the hub could give: {line}"


def _load_folder(folder: Path, *, field: str) -> AutoencoderKL:
    if not (folder / "config.json").is_file() and (folder / "vae" / "config.json").is_file():
        folder = folder / "vae"
    require(
        (folder / "config.json").is_file(),
        f"{field}: {folder} holds no config.json, so it is no diffusers model"
        + ("; it is a run: export it first" if (folder / "config.yaml").is_file() else ""),
    )
    class_name = json.loads((folder / "config.json").read_text()).get("_class_name")
    require(class_name == "AutoencoderKL", f"{field}: {folder} holds a {class_name}, not an AutoencoderKL")
    plain = any(any(folder.glob(f"diffusion_pytorch_model{end}")) for end in (".safetensors*", "*.bin"))
    variant = None if plain else "fp16"
    try:
        return AutoencoderKL.from_pretrained(folder, variant=variant, torch_dtype=torch.float32).eval()
    except OSError as error:
        raise ValueError(f"{field}: {folder} has no weights that can be read: {str(error).splitlines()[0]}") from None


def spatial_factor(autoencoder: AutoencoderKL) -> int:
    """Image pixels a latent pixel, along one side."""
    return 2 ** (len(autoencoder.config.block_out_channels) - 1)


def with_latent_channels(autoencoder: AutoencoderKL, latent_channels: int) -> AutoencoderKL:
    """Return a copy with another number of latent channels, the first min(old, new) kept as they are.

    The moments of the kept channels don't change. New channels enter the decoder with zero weight, so the
    reconstruction doesn't change either until training finds a use for them; dropped ones are missing there.
    """
    old, new = autoencoder.config.latent_channels, latent_channels
    statistics = {"latents_mean": None, "latents_std": None}  # per old channel, no longer true
    widened = AutoencoderKL.from_config(autoencoder.config, latent_channels=new, **statistics)
    state, source = widened.state_dict(), autoencoder.state_dict()
    kept = torch.arange(min(old, new))
    old_moments, new_moments = torch.cat([kept, old + kept]), torch.cat([kept, new + kept])

    for name, target in state.items():
        if target.shape == source[name].shape:
            target.copy_(source[name])
    if autoencoder.quant_conv is not None and new < old:
        source |= _fold_quant_conv(source)  # a kept moment may come from a dropped channel of conv_out
    for name in ("encoder.conv_out.weight", "encoder.conv_out.bias"):
        state[name][new_moments] = source[name][old_moments]
    _graft(state, source, "decoder.conv_in", columns=(kept, kept))
    if autoencoder.quant_conv is not None:
        _graft(state, source, "quant_conv", rows=(new_moments, old_moments), columns=(new_moments, old_moments))
        _graft(state, source, "post_quant_conv", rows=(kept, kept), columns=(kept, kept))
    widened.load_state_dict(state)
    return widened.train(autoencoder.training)


def _fold_quant_conv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's last convolution with quant_conv in it, and an identity in quant_conv's place."""
    mixing = state["quant_conv.weight"][:, :, 0, 0]
    return {
        "encoder.conv_out.weight": torch.einsum("om,mihw->oihw", mixing, state["encoder.conv_out.weight"]),
        "encoder.conv_out.bias": mixing @ state["encoder.conv_out.bias"] + state["quant_conv.bias"],
        "quant_conv.weight": torch.eye(len(mixing))[:, :, None, None],
        "quant_conv.bias": torch.zeros(len(mixing)),
    }


Indices = tuple[Tensor, Tensor]


def _graft(
    state: dict[str, Tensor], source: dict[str, Tensor], name: str, *, columns: Indices, rows: Indices | None = None
) -> None:
    """Copy a convolution's kept rows and columns; what the kept rows would take from new columns is zero."""
    weight, old_weight = state[f"{name}.weight"], source[f"{name}.weight"]
    every = torch.arange(len(old_weight))
    new_rows, old_rows = rows or (every, every)
    weight[new_rows] = 0
    weight[new_rows[:, None], columns[0]] = old_weight[old_rows[:, None], columns[1]]
    state[f"{name}.bias"][new_rows] = source[f"{name}.bias"][old_rows]


@torch.no_grad()
def encode_moments(autoencoder: AutoencoderKL, images: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior mean and standard deviation.

    Args:
        images: [B, C, H, W] in [-1, 1].
    Returns:
        Two float32 tensors [B, c, h, w].
    """
    mean, logvar = _moments(autoencoder, images)
    return mean, torch.exp(0.5 * logvar)


def _moments(autoencoder: AutoencoderKL, images: Tensor) -> tuple[Tensor, Tensor]:
    moments = autoencoder.encoder(images)
    if autoencoder.quant_conv is not None:
        moments = autoencoder.quant_conv(moments)
    mean, logvar = moments.float().chunk(2, dim=1)
    return mean, logvar.clamp(LOGVAR_MIN, LOGVAR_MAX)


class TrainableOutput(NamedTuple):
    """What the step needs of one forward."""

    reconstruction: Tensor  # [B, C, H, W], float32
    images: Tensor  # [B, C, H, W], those that it is compared with: encoded ones, or what interventions made of them
    mean: Tensor  # [B, c, h, w], float32
    posterior_logvar: Tensor  # [B, c, h, w], float32, clamped
    likelihood_logvar: Tensor  # [], the learnt s, part of the graph
    features: Tensor  # [B, width, H, W], input of the last convolution, detached


Draws = Mapping[str, Tensor]
"""What was drawn at random for a micro-batch beside its posterior noise, by name."""

Intervention = Callable[[Tensor, Tensor, Draws], tuple[Tensor, Tensor]]
"""Changes the latents that are decoded and, alike, the images that the reconstruction is compared with: called with
(z, images, draws) for (z', images'). It is a function of its arguments alone: whatever is random is in `draws`, which
come with the batch, as functions of (seed, k), or of (seed, step) where they decide on a shape."""


class TrainableAutoencoder(nn.Module):
    """The one module that DDP wraps: whatever is trained by the generator's loss is a parameter of it.

    Args:
        autoencoder: diffusers' model.
        decoder_only: whether encoder and quant_conv stay as they are.
        learn_logvar: whether the log-variance s of the likelihood is trained.
        logvar_init: its first value.
        term_networks: networks that terms of the objective train, by the terms' names.
        interventions: run one after the other in the forward of every batch that comes with draws.
    """

    def __init__(
        self,
        autoencoder: AutoencoderKL,
        *,
        decoder_only: bool,
        learn_logvar: bool,
        logvar_init: float,
        term_networks: Mapping[str, nn.Module] | None = None,
        interventions: Sequence[Intervention] = (),
    ):
        super().__init__()
        self.autoencoder = autoencoder
        self.decoder_only = decoder_only
        self.likelihood_logvar = nn.Parameter(torch.tensor(logvar_init), requires_grad=learn_logvar)
        self.term_networks = nn.ModuleDict(dict(term_networks or {}))
        self.interventions = interventions
        if decoder_only:
            autoencoder.encoder.requires_grad_(False)
            if autoencoder.quant_conv is not None:
                autoencoder.quant_conv.requires_grad_(False)
        speed_up_blocks(autoencoder)
        self.decode_features: Callable[[Tensor], Tensor] = functools.partial(decode_features, autoencoder)

    @property
    def last_layer(self) -> nn.Conv2d:
        """The decoder's last convolution, whose weight W the adaptive weight is measured at."""
        return self.autoencoder.decoder.conv_out

    def forward(self, images: Tensor, noise: Tensor, draws: Draws | None = None) -> TrainableOutput:
        """Encode, sample the posterior with `noise`, intervene where there are `draws`, and decode.

        Args:
            images: [B, C, H, W] in [-1, 1].
            noise: [B, c, h, w], standard normal.
            draws: what the interventions take.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.decoder_only):
            mean, posterior_logvar = _moments(self.autoencoder, images)
        z = mean + torch.exp(0.5 * posterior_logvar) * noise
        for intervention in self.interventions if draws else ():
            z, images = intervention(z, images, draws or {})
        features = self.decode_features(z)
        return TrainableOutput(
            reconstruction=self.last_layer(features).float(),
            images=images,
            mean=mean,
            posterior_logvar=posterior_logvar,
            likelihood_logvar=self.likelihood_logvar.clone(),
            features=features.detach(),
        )

    def compile_networks(self) -> None:
        """Compile encoder and decoder, in place; names and weights stay as they are."""
        self.autoencoder.encoder.compile()
        self.decode_features = torch.compile(self.decode_features)


def decode_features(autoencoder: AutoencoderKL, latents: Tensor) -> Tensor:
    """The decoder up to the input of its last convolution: [B, c, h, w] to [B, width, H, W]."""
    decoder = autoencoder.decoder
    if autoencoder.post_quant_conv is not None:
        latents = autoencoder.post_quant_conv(latents)
    hidden = decoder.mid_block(decoder.conv_in(latents))
    for up_block in decoder.up_blocks:
        hidden = up_block(hidden)
    return decoder.conv_act(decoder.conv_norm_out(hidden))


_BLOCKS = (ResnetBlock2D, Attention, Upsample2D, Downsample2D)
_LEVELS = (DownEncoderBlock2D, AttnDownEncoderBlock2D, UNetMidBlock2D, UpDecoderBlock2D, AttnUpDecoderBlock2D)
_CHECKPOINTED: dict[CheckpointingLevel, tuple[type[nn.Module], ...]] = {
    "none": (),
    "blocks": _BLOCKS,
    "full": (*_LEVELS, *_BLOCKS),
}


def checkpoint_activations(autoencoder: AutoencoderKL, level: CheckpointingLevel) -> None:
    """Recompute activations in the backward instead of storing them; calling it again changes the level.

    `blocks` stores the input of each block, and recomputes a block up to its last convolution. `full` stores the
    input of each resolution level, recomputes the inputs of its blocks, and from them the blocks.
    """
    for module in autoencoder.modules():
        forward = module.forward
        if isinstance(forward, functools.partial) and forward.func is checkpoint:
            forward = module.forward = forward.args[0]
        if isinstance(module, _CHECKPOINTED[level]):
            module.forward = functools.partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)
