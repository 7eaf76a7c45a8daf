"""Weight files read without running code or loading more than is asked for, and what a foreign one looks like."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor


class _Inert:
    """Stands for a class that published checkpoints only name, so that its own code is never needed."""


# Lightning wrote its callback's class into every checkpoint, as a key of a dictionary.
_NAMED_ONLY: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_Inert, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")
]


_COMPILED = re.compile(r"(^|\.)_orig_mod\.")
_WEIGHT_KEYS = ("state_dict", "model", "module", "model_state_dict", "generator", "vae")
"""Under which training programs keep weights in a checkpoint, the likeliest first."""


@dataclass(frozen=True)
class WeightFile:
    """Names and metadata of a weight file; `load` reads the tensors one asks for, in their stored type."""

    path: Path
    names: list[str]
    metadata: dict[str, str]
    load: Callable[[Iterable[str]], dict[str, Tensor]]
    left_out: list[str] = field(default_factory=list)
    """Other sets of weights that the file holds beside these, such as averaged ones, by the key they are under."""


def open_weights(path: str | Path) -> WeightFile:
    """Open a safetensors file, or a torch pickle with `weights_only=True`, whatever its suffix.

    Names are given without what torch.compile (`_orig_mod.`) and DDP (`module.`) put before them.

    Raises:
        ValueError: The file is missing, damaged or of another kind, or a pickle that would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    with path.open("rb") as file:
        start = file.read(9)
    return _unwrapped(_open_safetensors(path) if start[8:] == b"{" else _open_pickle(path))


def _unwrapped(file: WeightFile) -> WeightFile:
    """Take off the names' prefixes of torch.compile and DDP, unless two names would become one."""
    stored = {_COMPILED.sub(r"\1", name): name for name in file.names}
    while stored and all(name.startswith("module.") for name in stored):
        stored = {name.removeprefix("module."): original for name, original in stored.items()}
    if len(stored) < len(file.names):
        return file
    return replace(
        file,
        names=list(stored),
        load=lambda wanted: {name: file.load([stored[name]])[stored[name]] for name in wanted},
    )


def _open_safetensors(path: Path) -> WeightFile:
    try:
        with safe_open(path, framework="pt") as file:
            names, metadata = list(file.keys()), file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); fetch or write it again") from error

    def load(wanted: Iterable[str]) -> dict[str, Tensor]:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in wanted}

    return WeightFile(path=path, names=names, metadata=metadata, load=load)


def _open_pickle(path: Path) -> WeightFile:
    try:
        with torch.serialization.safe_globals(_NAMED_ONLY):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle can raise anything
        unsafe = re.search(r"GLOBAL ([\w.]+)", str(error))
        if unsafe:
            raise ValueError(
                f"{path} is a pickle that would run {unsafe[1]} when it is read, so it is refused; "
                f"take its safetensors version"
            ) from error
        raise ValueError(f"{path} is neither a safetensors file nor a readable torch pickle of weights") from error
    left_out: list[str] = []
    while isinstance(content, dict) and not any(isinstance(value, Tensor) for value in content.values()):
        nested = [str(key) for key, value in content.items() if isinstance(value, dict) and value]
        chosen = next((key for key in _WEIGHT_KEYS if key in nested), nested[0] if len(nested) == 1 else None)
        if chosen is None:
            break
        left_out += [key for key in nested if key != chosen and _holds_tensors(content[key])]
        content = content[chosen]
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors and content:
        raise ValueError(
            f"{path} holds no weights under a name that is known ({', '.join(_WEIGHT_KEYS)}), but "
            f"{', '.join(map(str, list(content)[:6]))}; save the autoencoder's state dict alone"
        )
    return WeightFile(
        path=path,
        names=list(tensors),
        metadata={},
        load=lambda wanted: {name: tensors[name] for name in wanted},
        left_out=left_out,
    )


def _holds_tensors(content: dict[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in content.values())


_LOOKS = (
    (r"lora_(up|down|A|B|unet|te)|\.lora\.|hada_w1|lokr_w1", "a LoRA"),
    (r"^control_model\.|^input_hint_block\.|^controlnet_", "a ControlNet"),
    (r"quantize\.embedding", "a VQ autoencoder (it has a codebook)"),
    (r"^decoder\.middle\.\d+\.residual|\.conv\.conv\.weight$|time_conv\.weight$", "a video autoencoder"),
    (r"^(encoder\.|decoder\.)?(layers\.)?\d+\.(conv\.)?\d*\.?weight$", "a tiny autoencoder (TAESD)"),
    (r"^encoder\.(down_blocks|mid_block)\.", "the weights of a diffusers folder; give the folder itself"),
    (r"^(model\.diffusion_model\.)?(double_blocks|joint_blocks|single_blocks)\.|^transformer_blocks\.",
     "a diffusion transformer"),
    (r"^model\.diffusion_model\.|^input_blocks\.", "a UNet in LDM layout"),
    (r"^down_blocks\.|^mid_block\.", "a UNet of diffusers"),
    (r"text_model\.|resblocks\.\d+\.attn|SelfAttention|^token_embedding\.|embed_tokens\.", "a text encoder"),
    (r"^emb_params$|^string_to_param|^clip_[lg]$", "an embedding (textual inversion)"),
)  # fmt: skip
_CHECKPOINT_PARTS = (r"^model\.diffusion_model\.", r"^(cond_stage_model|conditioner|text_encoders)\.")


def looks_like(names: Iterable[str]) -> str:
    """Say what weights of these names seem to be, for an error message, such as "a LoRA" or "a UNet in LDM layout"."""
    names = list(names)
    if all(any(re.search(part, name) for name in names) for part in _CHECKPOINT_PARTS):
        return "a full checkpoint without a VAE"
    for pattern, kind in _LOOKS:
        if any(re.search(pattern, name) for name in names):
            return kind
    if not names:
        return "a file without any weights"
    return f"something unknown, with names such as {', '.join(sorted(names)[:3])}"
