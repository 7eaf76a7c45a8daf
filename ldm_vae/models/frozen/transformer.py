"""Vision transformers of the library transformers, from a local folder: DINOv2, DINOv3, SigLIP and SigLIP2."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ldm_vae.config.rules import FieldError, mark, within
from ldm_vae.models.frozen.trunk import Depth, Trunk
from ldm_vae.models.resizing import Interpolation

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_INTERPOLATIONS: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}  # PIL's numbers


class _Kind(NamedTuple):
    """What to know of a network's class."""

    name: str
    """As settings have it."""
    model_class: str
    statistics: tuple[Sequence[float], Sequence[float]]
    """Mean and deviation of the pixels in [0, 1], where the folder doesn't say them."""
    interpolation: Interpolation
    """Likewise, how pictures are scaled."""


_KINDS = {  # by model_type in config.json
    "dinov2": _Kind("dinov2", "Dinov2Model", IMAGENET, "bicubic"),
    "dinov2_with_registers": _Kind("dinov2", "Dinov2WithRegistersModel", IMAGENET, "bicubic"),
    "dinov3_vit": _Kind("dinov3", "DINOv3ViTModel", IMAGENET, "bilinear"),
    "siglip": _Kind("siglip2", "SiglipVisionModel", HALF, "bicubic"),
    "siglip_vision_model": _Kind("siglip2", "SiglipVisionModel", HALF, "bicubic"),
    "siglip2": _Kind("siglip2", "Siglip2VisionModel", HALF, "bilinear"),
    "siglip2_vision_model": _Kind("siglip2", "Siglip2VisionModel", HALF, "bilinear"),
}
_PUBLISHED = {
    "dinov2": "facebook/dinov2-base",
    "dinov3": "facebook/dinov3-vitb16-pretrain-lvd1689m",
    "siglip2": "google/siglip2-base-patch16-256",
}


class TransformerTrunk(Trunk):
    """A vision transformer, block by block; in one piece it has to give what transformers' own forward gives.

    Args:
        model: The network, of one of the known classes.
        depth: Which features. `last` is what the network ends with, normed; the others are its blocks' outputs.
        statistics: Mean and deviation by which it wants pixels in [0, 1] normalised.
        interpolation: How pictures are scaled for it.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        model: Any,
        *,
        depth: Depth,
        statistics: tuple[Sequence[float], Sequence[float]],
        interpolation: Interpolation,
    ) -> None:
        super().__init__()
        self.model_class = type(model).__name__
        model = getattr(model, "vision_model", model)
        config, encoder = model.config, getattr(model, "encoder", getattr(model, "model", model))
        self.embeddings = model.embeddings
        self.rope = getattr(model, "rope_embeddings", None)
        self.blocks = nn.ModuleList(getattr(encoder, "layers", getattr(encoder, "layer", None)))
        norms = [getattr(model, name) for name in ("layernorm", "norm", "post_layernorm") if hasattr(model, name)]
        self.norm = norms[0]
        self.depth = depth
        self._run_blocks: Callable[..., Sequence[Tensor]] = self._blocks_features
        self.patch_size = int(config.patch_size)
        self.interpolation = interpolation
        self._prefix = 0 if "iglip" in self.model_class else 1 + getattr(config, "num_register_tokens", 0)
        self._kept = _kept_blocks(len(self.blocks), depth)
        self.channels = (int(config.hidden_size),) * len(self._kept)
        self.strides = (self.patch_size,) * len(self._kept)
        mean, std = (torch.tensor(values)[:, None, None] for values in statistics)
        self.register_buffer("scale", 0.5 / std)  # of [-1, 1]
        self.register_buffer("shift", (0.5 - mean) / std)

    def forward(self, images: Tensor) -> Sequence[Tensor]:
        """Return the features, shallow to deep, of images [B, 3, H, W] in [-1, 1]."""
        rows, columns = (side // self.patch_size for side in images.shape[-2:])
        pixels = images * self.scale + self.shift
        hidden = self._embed(pixels, rows=rows, columns=columns)
        arguments = {} if self.rope is None else {"position_embeddings": self.rope(pixels)}
        return self._run_blocks(hidden, (rows, columns), arguments)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the blocks, in place. Embeddings stay: Siglip2's reads sizes from a tensor, which breaks a graph."""
        self._run_blocks = torch.compile(self._run_blocks, *args, **kwargs)

    def _blocks_features(self, hidden: Tensor, size: tuple[int, int], arguments: dict[str, Any]) -> Sequence[Tensor]:
        """Return the features of tokens [B, n, C] of so many rows and columns of patches."""
        kept = []
        for number, block in enumerate(self.blocks):
            hidden = block(hidden, None, **arguments)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden  # as before transformers 5
            if number in self._kept:
                kept.append(hidden)
        if self.depth == "last":
            kept = [self.norm(hidden)]
        if self.depth == "all":
            return [tokens.transpose(1, 2).unsqueeze(-1) for tokens in kept]
        return [tokens[:, self._prefix :].transpose(1, 2).unflatten(2, size) for tokens in kept]

    def _embed(self, pixels: Tensor, *, rows: int, columns: int) -> Tensor:
        """Return tokens [B, n, C] with their places, of normalised pixels."""
        if self.model_class == "SiglipVisionModel":
            return self.embeddings(pixels, interpolate_pos_encoding=True)
        if self.model_class == "Siglip2VisionModel":  # takes patches, with the channels last in each
            patches = pixels.unflatten(3, (columns, self.patch_size)).unflatten(2, (rows, self.patch_size))
            patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
            return self.embeddings(patches, torch.tensor([[rows, columns]]))  # on the CPU: nothing waits for it
        return self.embeddings(pixels)


def _kept_blocks(number: int, depth: Depth) -> list[int]:
    if depth == "all":
        return list(range(number))
    if depth == "last":
        return [number - 1]
    return sorted({max(0, round(number * quarter / 4) - 1) for quarter in (1, 2, 3, 4)})


def load_transformer(name: str, *, folder: str | None, depth: Depth, choice: str, field: str) -> TransformerTrunk:
    """Load a vision transformer from a folder, in float32; see `load_vision`.

    Raises:
        FieldError: The folder isn't there, isn't whole or holds another network, or transformers is missing.
    """
    how = f"`hf download {_PUBLISHED[name]} --local-dir FOLDER` gets one"
    if folder is None:
        raise FieldError(f"{mark(choice)} is {name}: name the folder that holds it in {mark(field)}; {how}")
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise within(
            mark(field),
            f"{path} holds no config.json; it is to be a folder with {name} as transformers writes it; {how}",
        )
    kind = _kind_of(path, field=field)
    if kind.name != name:
        raise FieldError(f"{mark(choice)} is {name}, but {mark(field)} {path} holds {kind.name}; take that, or {how}")
    model = _load_model(path, kind, field=field)
    statistics, interpolation = _preprocessing(path, kind, field=field)
    return TransformerTrunk(model, depth=depth, statistics=statistics, interpolation=interpolation)


def _kind_of(path: Path, *, field: str) -> _Kind:
    model_type = _fields(path / "config.json", field=field).get("model_type")
    if model_type not in _KINDS:
        raise within(
            mark(field),
            f"{path} holds a network of the type {model_type}; the known ones are {', '.join(_KINDS)}",
        )
    return _KINDS[model_type]


def _load_model(path: Path, kind: _Kind, *, field: str) -> Any:
    """Return the model, whole; transformers alone would draw what the file lacks."""
    try:
        import transformers
        from transformers.utils import logging
    except ImportError:
        raise FieldError(f"{mark(field)} needs transformers: pip install 'ldm-vae[vision]'") from None
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, told = getattr(transformers, kind.model_class).from_pretrained(
            path, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # whatever a damaged file makes of it
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise within(mark(field), f"{path} can't be read: {reason}") from None
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
    missing = sorted(str(each) for kinds in ("missing_keys", "mismatched_keys") for each in told.get(kinds) or ())
    if missing:
        raise within(mark(field), f"{path} isn't whole: it lacks {missing[0]}; fetch it again")
    return model.float()


def _preprocessing(
    path: Path, kind: _Kind, *, field: str
) -> tuple[tuple[Sequence[float], Sequence[float]], Interpolation]:
    """Return how the network wants pictures, by the folder's own words where it has any."""
    file = path / "preprocessor_config.json"
    fields = _fields(file, field=field) if file.is_file() else {}
    mean, std = kind.statistics
    statistics = (fields.get("image_mean") or mean, fields.get("image_std") or std)
    return statistics, _INTERPOLATIONS.get(fields.get("resample", 0), kind.interpolation)


def _fields(path: Path, *, field: str) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise within(mark(field), f"{path} can't be read: {error}") from None
    return fields if isinstance(fields, dict) else {}
