"""Our exports inside diffusers' own pipelines: right sizes, scaling read as written, a check that tells the truth."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from PIL import Image
from torch import Tensor

from ldm_vae.cli import main
from ldm_vae.config.commands.convert import ConvertOptions
from ldm_vae.exporting.convert import convert, write_diffusers_folder
from ldm_vae.exporting.pipelines import pipeline_check
from tests.exporting.tiny_pipelines import (
    FLUX_CLASSES,
    NOISE,
    SAMPLE_SIZE,
    SD3_CLASSES,
    UNET_CLASSES,
    XL_CLASSES,
    tiny_pipeline,
    tiny_vae,
)
from tests.launching import SCRIPTS

TEXT_FREE = ("DiTPipeline", "LDMPipeline")
EVERY = (*UNET_CLASSES, *XL_CLASSES, *SD3_CLASSES, *FLUX_CLASSES, *TEXT_FREE)
SCALING = {"scaling_factor": 1.7, "shift_factor": 0.3}
STATISTICS = {"latents_mean": [0.5, -0.5, 0.2, 0.1], "latents_std": [0.7, 1.2, 1.5, 0.9]}
FACTOR, SIDE = 2, 2 * SAMPLE_SIZE


def export(folder: Path, vae: AutoencoderKL) -> Path:
    """Write a VAE as our tools do, by way of a single LDM file."""
    config = json.loads(vae.to_json_string())
    write_diffusers_folder(folder / "first", vae.state_dict(), config=config)
    convert(ConvertOptions(input=str(folder / "first"), output=str(folder / "vae.safetensors")))
    convert(ConvertOptions(input=str(folder / "vae.safetensors"), output=str(folder / "vae")))
    return folder / "vae"


def encodes(name: str) -> bool:
    return "Img2Img" in name or "Inpaint" in name


def reads(name: str, config: Any) -> tuple[Tensor, Tensor]:
    """(shift, scale), each [1, C, 1, 1], of (z - shift) * scale as documented for a pipeline class."""
    if name in XL_CLASSES and config.latents_mean is not None:
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (config.latents_mean, config.latents_std))
        return mean, config.scaling_factor / std
    shift = config.shift_factor if name in (*SD3_CLASSES, *FLUX_CLASSES) else 0.0
    return torch.full((1, 1, 1, 1), shift), torch.full((1, 1, 1, 1), config.scaling_factor)


def picture(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """The VAE's own picture of unscaled latents, [B, 3, H, W] in [0, 1]."""
    return (vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)


def photograph() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def generate(pipeline: DiffusionPipeline, **arguments: Any) -> Any:
    """Call any of the pipelines in two steps; those that take a picture get a photograph at half strength."""
    name = type(pipeline).__name__
    arguments = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0)} | arguments
    if name == "DiTPipeline":
        arguments |= {"class_labels": [1]}
    elif name not in TEXT_FREE:
        arguments |= {"prompt": "a photo of grass"}
    if encodes(name):
        arguments |= {"image": photograph(), "strength": 0.5}
    if "Inpaint" in name:
        arguments |= {"mask_image": Image.new("L", (SIDE, SIDE), 255)}
    if name in FLUX_CLASSES or name == "StableDiffusion3Img2ImgPipeline":
        arguments = {"height": SIDE, "width": SIDE} | arguments
    return pipeline(**arguments)[0]


@pytest.mark.parametrize("name", EVERY)
@torch.no_grad()
def test_an_export_is_swapped_in_and_its_scaling_read_as_written(name: str, tmp_path: Path) -> None:
    """With `vae=` and as the subfolder: the right size, the documented latents, and the VAE's own reconstruction."""
    statistics = STATISTICS if name in XL_CLASSES and "Inpaint" not in name else {}
    vae = tiny_vae(**SCALING, **statistics)
    folder = export(tmp_path, vae)
    own = tiny_vae(scaling_factor=0.9, shift_factor=0.0)
    own.post_quant_conv.bias.data += 1
    tiny_pipeline(name, vae=own).save_pretrained(tmp_path / "pipeline")
    check = pipeline_check(folder, tmp_path / "pipeline")
    assert check.fits, str(check)
    assert "scaling_factor is 1.7, and 0.9 in the VAE that the pipeline's model knows" in check.notes

    part = "vqvae" if name == "LDMPipeline" else "vae"
    swapped = DiffusionPipeline.from_pretrained(tmp_path / "pipeline", **{part: AutoencoderKL.from_pretrained(folder)})
    shutil.rmtree(tmp_path / "pipeline" / part)
    shutil.copytree(folder, tmp_path / "pipeline" / part)
    inside = DiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    for pipeline in (swapped, inside):
        pipeline.set_progress_bar_config(disable=True)
    assert generate(swapped)[0].size == (SIDE, SIDE)

    images = torch.from_numpy(np.array(photograph())).permute(2, 0, 1)[None] / 127.5 - 1
    z = vae.encode(images).latent_dist.mode()
    shift, scale = reads(name, vae.config)
    if name in TEXT_FREE:
        noise = torch.randn(1, 4, SAMPLE_SIZE, SAMPLE_SIZE, generator=torch.Generator().manual_seed(0))
        z, arguments = noise / scale + shift, {}
    elif encodes(name):
        latents = generate(inside, output_type="latent")
        if name in FLUX_CLASSES:
            latents = inside._unpack_latents(latents, SIDE, SIDE, FACTOR)
        torch.testing.assert_close(latents, (z - shift) * scale, rtol=0, atol=6 * NOISE)
        arguments = {}
    else:
        latents = (z - shift) * scale
        arguments = {"latents": inside._pack_latents(latents, 1, 4, 8, 8) if name in FLUX_CLASSES else latents}
    if name in (
        "LDMPipeline",
        "DiTPipeline",
    ):  # which gave arrays whatever was asked for, the second up to diffusers 0.35
        found = torch.from_numpy(generate(inside, output_type="np", **arguments)).permute(0, 3, 1, 2)
    else:
        found = generate(inside, output_type="pt", **arguments)
    tolerance = 0.01
    torch.testing.assert_close(found, picture(vae, z), rtol=0, atol=tolerance)
    for wrong in (z * 1.2, z + 0.2):
        assert (picture(vae, wrong) - picture(vae, z)).abs().max() > 3 * tolerance


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline",
                                  "DiTPipeline", "LDMPipeline"])  # fmt: skip
def test_pictures_have_the_size_that_the_factor_gives(name: str) -> None:
    pipeline = tiny_pipeline(name, vae=tiny_vae(widths=(4, 4, 8), shift_factor=0.0))
    assert generate(pipeline)[0].size == (4 * SAMPLE_SIZE, 4 * SAMPLE_SIZE)
    if name not in TEXT_FREE:
        assert generate(pipeline, height=16, width=24)[0].size == (24, 16)


SD, XL, SD3, FLUX = UNET_CLASSES[0], XL_CLASSES[0], SD3_CLASSES[0], FLUX_CLASSES[0]
CASES: tuple[tuple[str, dict[str, Any], int | None, str], ...] = (
    # pipeline, VAE, channels of the denoiser if other than the VAE's, fields that don't fit
    (SD, {}, None, ""),
    (SD, {"latent_channels": 8}, None, ""),
    (SD, {"latent_channels": 8}, 4, "latent_channels"),
    (SD, {"in_channels": 1, "out_channels": 1}, None, ""),
    ("StableDiffusionImg2ImgPipeline", {"in_channels": 1}, None, "in_channels"),
    ("StableDiffusionImg2ImgPipeline", {"in_channels": 4, "out_channels": 4}, None, "in_channels"),
    ("StableDiffusionInpaintPipeline", {}, 9, ""),
    ("StableDiffusionInpaintPipeline", {"latent_channels": 8}, None, "latent_channels"),
    ("StableDiffusionInpaintPipeline", {"latent_channels": 8}, 17, "latent_channels"),
    ("StableDiffusionInpaintPipeline", {"latent_channels": 3}, 9, "latent_channels"),
    ("StableDiffusionXLInpaintPipeline", {}, 9, ""),
    ("StableDiffusionXLInpaintPipeline", {"latent_channels": 8}, None, "latent_channels"),
    (XL, {"latent_channels": 8}, None, ""),
    (
        XL,
        {"latent_channels": 8, "latents_mean": [0.0] * 8, "latents_std": [1.0] * 8},
        None,
        "latents_mean latents_std",
    ),
    (
        "StableDiffusionXLImg2ImgPipeline",
        {"latent_channels": 8, "latents_std": [1.0] * 8},
        None,
        "latents_std latents_mean",
    ),
    (SD3, {"latent_channels": 16, "shift_factor": 0.0}, None, ""),
    (SD3, {"latent_channels": 16}, None, "shift_factor"),
    (SD3, {"shift_factor": 0.1}, 16, "latent_channels"),
    ("StableDiffusion3Img2ImgPipeline", {"shift_factor": 0.1, "latent_channels": 3}, None, "latent_channels"),
    (FLUX, {"latent_channels": 16, "shift_factor": 0.1}, 64, ""),
    (FLUX, {"shift_factor": 0.1}, 64, "latent_channels"),
    (FLUX, {"latent_channels": 16}, 64, "shift_factor"),
    ("FluxImg2ImgPipeline", {"latent_channels": 3, "shift_factor": 0.1}, None, "latent_channels"),
    ("DiTPipeline", {"latent_channels": 8}, None, ""),
    ("DiTPipeline", {"latent_channels": 8}, 4, "latent_channels"),
    ("LDMPipeline", {"latent_channels": 3}, None, ""),
    ("LDMPipeline", {"latent_channels": 3}, 4, "latent_channels"),
)


@pytest.mark.parametrize(("name", "config", "in_channels", "misfits"), CASES)
def test_the_check_says_what_happens(
    name: str, config: dict[str, Any], in_channels: int | None, misfits: str, tmp_path: Path
) -> None:
    """A pipeline runs and gives pictures of the right size where the check says so, and nowhere else."""
    vae = tiny_vae(**config)
    pipeline = tiny_pipeline(name, vae=vae, in_channels=in_channels)
    vae.save_pretrained(tmp_path / "vae")
    pipeline.save_pretrained(tmp_path / "pipeline")
    try:
        runs = generate(pipeline)[0].size == (SIDE, SIDE)
    except (RuntimeError, ValueError, TypeError):
        runs = False
    check = pipeline_check(tmp_path / "vae", tmp_path / "pipeline")
    assert [found.field for found in check.misfits] == misfits.split(), str(check)
    assert runs == check.fits


def test_what_runs_and_is_wrong_is_said_too(tmp_path: Path) -> None:
    """Another spatial factor than the model's; statistics that are used one way only; numbers that are ignored."""

    def checked(name: str, **config: Any):
        tiny_vae(**config).save_pretrained(tmp_path / "vae")
        if not (tmp_path / name).exists():
            tiny_pipeline(name, vae=tiny_vae()).save_pretrained(tmp_path / name)
        return pipeline_check(tmp_path / "vae", tmp_path / name)

    deep = checked(SD, widths=(4, 4, 8))
    assert str(deep).splitlines() == [
        f"{tmp_path / 'vae'} does not fit {SD} in {tmp_path / SD}",
        "block_out_channels: gives a spatial factor of 4, and the pipeline's own VAE 2",
    ]
    assert [found.field for found in checked("StableDiffusionXLInpaintPipeline", **STATISTICS).misfits] == [
        "latents_mean"
    ]
    assert [found.field for found in checked(XL, latents_mean=[0.0] * 4).misfits] == ["latents_mean"]
    ignored = checked(SD, shift_factor=0.5, **STATISTICS)
    assert ignored.fits
    assert f"shift_factor 0.5 is ignored by {SD}" in ignored.notes
    assert f"latents_mean and latents_std are ignored by {SD}" in ignored.notes
    shutil.rmtree(tmp_path / SD / "vae")
    assert any("no VAE of its own" in note for note in checked(SD).notes)


def test_folders_of_another_kind_are_refused(tmp_path: Path) -> None:
    tiny_vae().save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match=r"pipeline: there is no .*model_index\.json"):
        pipeline_check(tmp_path / "vae", tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    with pytest.raises(ValueError, match="is a WanPipeline; those that can be checked are StableDiffusionPipeline"):
        pipeline_check(tmp_path / "vae", tmp_path)
    with pytest.raises(ValueError, match=r"vae: there is no .*config\.json"):
        pipeline_check(tmp_path, tmp_path)


def test_the_example_shows_the_reconstruction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`scripts/img2img_tiny.py`: a picture of both, and no more than a step's noise beside the VAE's own output."""
    tiny_vae(scaling_factor=20.0).save_pretrained(tmp_path / "vae")
    (tmp_path / "photos").mkdir()
    for i in range(2):
        photograph().resize((40, 32)).save(tmp_path / f"photos/{i}.png")
    (tmp_path / "photos/2.png").write_bytes(b"not a picture")
    output = tmp_path / "picture.png"
    arguments = ["--vae", str(tmp_path / "vae"), "--data", str(tmp_path / "photos"), "--output", str(output)]
    monkeypatch.setattr("sys.argv", ["img2img_tiny.py", *arguments, "--resolution", "32"])
    runpy.run_path(str(SCRIPTS / "img2img_tiny.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.count("skipped") == 1
    distances = [float(found) for found in re.findall(r"([\d.]+) dB from each other", printed)]
    assert len(distances) == 2
    assert min(distances) > 35
    with Image.open(output) as grid:
        assert grid.height > 2 * 32


def test_the_command_ends_by_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_vae(widths=(4, 4, 8)).save_pretrained(tmp_path / "vae")
    tiny_pipeline(SD, vae=tiny_vae()).save_pretrained(tmp_path / SD)
    with pytest.raises(SystemExit) as stop:
        main(["pipeline-check", str(tmp_path / "vae"), str(tmp_path / SD)])
    assert stop.value.code == 1
    told = capsys.readouterr()
    assert "block_out_channels: gives a spatial factor of 4" in told.out
    assert told.err.splitlines()[-1:] == [f"ldm-vae: {tmp_path / 'vae'} does not fit {tmp_path / SD}"]
    tiny_vae().save_pretrained(tmp_path / "vae")
    main(["pipeline-check", "--vae", str(tmp_path / "vae"), "--pipeline", str(tmp_path / SD)])
    assert f"fits {SD}" in capsys.readouterr().out
