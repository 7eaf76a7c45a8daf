"""`convert`: between a diffusers folder and a single LDM file, bit by bit, config included.

Our LDM files are read by ComfyUI and A1111 as far as their fixed architecture goes, and by diffusers, offline, as
`from_single_file(path, config=folder)`, where folder holds the config.json. Without `config` diffusers
takes that of the Stable Diffusion version it guesses, from the hub. It maps no attention inside levels: such a file
needs `convert`, or `load_autoencoder`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ldm_vae.config.commands.convert import ConvertOptions
from ldm_vae.config.rules import FieldError, require, within
from ldm_vae.exporting.readers import reader_notes
from ldm_vae.models.families.wrapped import ENCODER_IS_TRAINED
from ldm_vae.models.layouts.folder import CONFIG_NAME, WEIGHTS_NAME, FolderWeights, read_config, read_folder
from ldm_vae.models.layouts.ldm import (
    CONFIG_METADATA,
    check_fields,
    ldm_state_dict,
    read_ldm_weights,
)
from ldm_vae.system.files import whole_or_absent, write_whole
from ldm_vae.system.output_kinds import EXPORT
from ldm_vae.system.outputs import OutputFolder
from ldm_vae.system.tensors import write_tensors
from ldm_vae.system.text import printable

ONE_HALF = (
    "its encoder isn't trained, which a single LDM file can't say to those who read it; keep the diffusers folder"
)


@dataclass(frozen=True, kw_only=True)
class ConvertSummary:
    """What `convert` did; `str()` is what the command line prints."""

    output: Path
    direction: Literal["diffusers to ldm", "ldm to diffusers"]
    num_tensors: int
    """In the output."""
    num_bytes: int
    dtypes: list[str]
    config: dict[str, Any]
    assumed: dict[str, Any] = field(default_factory=dict)
    """Fields of the config that the LDM file doesn't say, set to published values."""
    left_out: list[str] = field(default_factory=list)
    """Names in the input that belong to its training and not to the autoencoder."""
    notes: list[str] = field(default_factory=list)
    """What was assumed and left out, and what other readers of the output do otherwise."""

    def __str__(self) -> str:
        """Return what was written, and what a user should know about it, in lines."""
        kind = "single LDM file" if self.direction == "diffusers to ldm" else "diffusers folder"
        size = f"{self.num_tensors} tensors, {self.num_bytes / 1e6:.1f} MB, {'/'.join(self.dtypes)}"
        lines = [f"{printable(str(self.output))}: {kind}, {size}", *self.notes]
        if self.assumed:
            lines.append("Where its model has others, give its config.json with --vae_config.")
        return "\n".join(lines)


def convert(options: ConvertOptions) -> ConvertSummary:
    """Convert a diffusers folder (or the `vae` of a pipeline folder) into a single LDM file, or the other way round.

    Tensors keep their type and bits, and config.json travels in the LDM file's metadata, so both round trips give back
    what there was. An LDM file of others says less: `options.vae_config` names a config.json that adds to it.

    Raises:
        ValueError: The input is no whole KL autoencoder, or the output is there already or is of the other kind.
    """
    source, output = Path(options.input).expanduser(), Path(options.output).expanduser()
    if source.is_dir():
        if options.vae_config is not None:
            raise FieldError(f"<vae_config> is for single LDM files; {source} has its own {CONFIG_NAME}")
        check_ldm_output(output, overwrite=options.overwrite)
        weights = _read_kl_folder(source)
        state, config = weights.state, weights.config | _said_of_scaling(options)
        written = write_ldm_file(output, state, config=config, overwrite=options.overwrite)
        return ConvertSummary(
            output=output,
            direction="diffusers to ldm",
            **_size(written),
            config=config,
            notes=[*weights.notes, *reader_notes(config)],
        )
    if not source.is_file():
        raise FieldError(f"<input>: there is no folder or file {source}")
    if output.suffix in (".safetensors", ".ckpt", ".pt"):
        raise FieldError(
            f"<output> {output} is named like a file, but {source} is a single file, so a folder is written"
        )
    OutputFolder(output, kind=EXPORT).check(overwrite=options.overwrite)
    override = read_config(Path(options.vae_config)) if options.vae_config is not None else {}
    override |= _said_of_scaling(options)
    try:
        file = read_ldm_weights(source, config=override)
    except ValueError as error:
        raise within("<input>", error) from None
    write_diffusers_folder(output, file.state, config=file.config, overwrite=options.overwrite)
    return ConvertSummary(
        output=output,
        direction="ldm to diffusers",
        **_size(file.state),
        config=file.config,
        assumed=file.assumed,
        left_out=file.left_out,
        notes=file.notes,
    )


def _said_of_scaling(options: ConvertOptions) -> dict[str, float]:
    given = {"scaling_factor": options.scaling_factor, "shift_factor": options.shift_factor}
    return {name: value for name, value in given.items() if value is not None}


def _read_kl_folder(source: Path) -> FolderWeights:
    """Read a folder whose class has a single-file layout."""
    try:
        weights = read_folder(source)
        check_fields({"_class_name": weights.config["_class_name"]})
        require(weights.config.get(ENCODER_IS_TRAINED) is not False, f"{source}: {ONE_HALF}")
    except ValueError as error:
        raise within("<input>", error) from None
    return weights


def write_ldm_file(
    path: str | Path, state: Mapping[str, Tensor], *, config: Mapping[str, Any], overwrite: bool = False
) -> dict[str, Tensor]:
    """Write a KL autoencoder as a single LDM file, whole or not at all.

    Args:
        path: A name that ends in .safetensors.
        state: The state dict as diffusers has it; types and bits are kept.
        config: The config as diffusers has it, with its `_class_name`; it goes into the metadata as it is.
        overwrite: Replace a file that is there.

    Returns:
        The tensors as the file holds them.

    Raises:
        ValueError: `path` is taken or misnamed, or `state` and `config` aren't a KL autoencoder that the layout holds.
    """
    path = Path(path)
    check_ldm_output(path, overwrite=overwrite)
    ldm_state = ldm_state_dict(state, config=config)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_or_absent(path) as temporary:
        _save_tensors(ldm_state, temporary, metadata={CONFIG_METADATA: json.dumps(dict(config))})
    return ldm_state


def check_ldm_output(path: Path, *, overwrite: bool) -> None:
    """Find out, before any long work, whether an LDM file may be written; nothing is changed.

    Raises:
        ValueError: The file is misnamed, taken, or its folder can't be written.
    """
    name = printable(str(path))
    check_ldm_name(path)
    require(not path.is_dir(), f"<output> {name} is a folder; a single file is to be written")
    require(overwrite or not path.exists(), f"<output> {name} is there already; <overwrite> replaces it")
    OutputFolder(path.parent, kind=EXPORT).check_writable()


def check_ldm_name(path: str | Path) -> None:
    """Raise `ValueError` where the name of an LDM file isn't one of a safetensors file."""
    require(
        str(path).endswith(".safetensors"),
        f"<output> {printable(str(path))} must end in .safetensors, the only kind of single file that is written",
    )


def write_diffusers_folder(
    folder: str | Path, state: Mapping[str, Tensor], *, config: Mapping[str, Any], overwrite: bool = False
) -> None:
    """Write config.json and the weights of a KL autoencoder into a folder that appears whole or not at all.

    Args:
        folder: A folder that isn't there, or is empty, or, with `overwrite`, holds an export and nothing else.
        state: The state dict as diffusers has it; types and bits are kept.
        config: The config as diffusers has it; it is written as it is.
        overwrite: Replace an export that is there.

    Raises:
        ValueError: The folder is taken.
    """
    with OutputFolder(folder, kind=EXPORT).whole(overwrite=overwrite) as temporary:
        write_diffusers_files(temporary, state, config=config)


def write_diffusers_files(
    folder: Path, state: Mapping[str, Tensor], *, config: Mapping[str, Any], variant: str | None = None
) -> None:
    """Write config.json and the weights of a KL autoencoder into a folder that is there.

    Args:
        folder: Where the files go.
        state: The state dict as diffusers has it; types and bits are kept.
        config: The config as diffusers has it; it is written as it is.
        variant: The word in the weights' name, such as `fp16`.
    """
    with whole_or_absent(folder / weights_name(variant)) as weights:
        _save_tensors(state, weights, metadata={})
    text = json.dumps(dict(config), indent=2, sort_keys=True) + "\n"  # as diffusers writes it
    write_whole(folder / CONFIG_NAME, text.encode())


def weights_name(variant: str | None) -> str:
    """Return diffusers' name for a file of weights."""
    return WEIGHTS_NAME if variant is None else WEIGHTS_NAME.replace(".safetensors", f".{variant}.safetensors")


def _save_tensors(state: Mapping[str, Tensor], path: Path, *, metadata: dict[str, str]) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    write_tensors(path, tensors, metadata={"format": "pt", **metadata})


def _size(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        "num_tensors": len(state),
        "num_bytes": sum(tensor.nbytes for tensor in state.values()),
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()}),
    }
