"""What `convert` writes and tells: nothing is lost, others may read it, and the summary is true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from ldm_vae.exporting.convert import WEIGHTS_NAME, write_diffusers_folder
from ldm_vae.exporting.readers import reader_notes
from tests.exporting.ldm_files import DOWN, UP, build, config_of, everything_in, folder_bytes, metadata_of, run
from tests.faults import full_disk


def test_an_output_that_is_there_stays(tmp_path: Path) -> None:
    """Refused without `overwrite`; a folder that holds anything but an export is refused even so."""
    build().save_pretrained(tmp_path / "vae")
    run(tmp_path / "vae", tmp_path / "vae.safetensors")
    other = build(scaling_factor=0.5)
    other.save_pretrained(tmp_path / "other")
    before = (tmp_path / "vae.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"vae\.safetensors is there already; overwrite"):
        run(tmp_path / "other", tmp_path / "vae.safetensors")
    with pytest.raises(ValueError, match="holds an export already; overwrite"):
        run(tmp_path / "vae.safetensors", tmp_path / "other")
    (tmp_path / "other/thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds thesis\.tex, which no export wrote"):
        run(tmp_path / "vae.safetensors", tmp_path / "other", overwrite=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_text("a picture")
    with pytest.raises(ValueError, match=r"holds a\.png, which no export wrote"):
        run(tmp_path / "vae.safetensors", tmp_path / "photos", overwrite=True)
    assert (tmp_path / "vae.safetensors").read_bytes() == before
    assert AutoencoderKL.load_config(tmp_path / "other")["scaling_factor"] == 0.5

    (tmp_path / "other/thesis.tex").unlink()
    run(tmp_path / "vae.safetensors", tmp_path / "other", overwrite=True)
    assert folder_bytes(tmp_path / "other") == folder_bytes(tmp_path / "vae")
    for source, output, message in (
        ("vae", "out.ckpt", "must end in .safetensors"),
        ("vae.safetensors", "out.safetensors", "named like a file"),
        ("nowhere", "out", "there is no folder or file"),
        ("photos", "out.safetensors", r"holds no config\.json"),
    ):
        with pytest.raises(ValueError, match=message):
            run(tmp_path / source, tmp_path / output)


@pytest.mark.parametrize("direction", ["file", "folder"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, direction: str) -> None:
    """The file system refuses more than 20 kB, in the middle of the weights."""
    build().save_pretrained(tmp_path / "vae")
    run(tmp_path / "vae", tmp_path / "vae.safetensors")
    source, output = ("vae", "vae.safetensors") if direction == "file" else ("vae.safetensors", "vae")
    before = everything_in(tmp_path)
    with full_disk(after_bytes=20_000), pytest.raises(Exception, match=r"(?i)too large"):
        run(tmp_path / source, tmp_path / output, overwrite=True)
    assert everything_in(tmp_path) == before


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    build().save_pretrained(tmp_path / "vae")
    run(tmp_path / "vae", tmp_path / "vae.safetensors")
    run(tmp_path / "vae.safetensors", tmp_path / "back")
    (tmp_path / "plain").touch()
    written = (tmp_path / "vae.safetensors", tmp_path / "back" / WEIGHTS_NAME, tmp_path / "back/config.json")
    assert {path.stat().st_mode for path in written} == {(tmp_path / "plain").stat().st_mode}


def test_a_folder_is_replaced_only_when_all_of_it_is_written(tmp_path: Path) -> None:
    """A config that JSON can't say fails after the weights are on the disk."""
    autoencoder = build()
    autoencoder.save_pretrained(tmp_path / "vae")
    before = everything_in(tmp_path)
    state = {name: tensor + 1 for name, tensor in autoencoder.state_dict().items()}
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_diffusers_folder(tmp_path / "vae", state, config=config_of(autoencoder) | {"x": {1}}, overwrite=True)
    assert everything_in(tmp_path) == before


def test_the_summary_says_what_others_would_read_otherwise(tmp_path: Path) -> None:
    build().half().save_pretrained(tmp_path / "vae")
    summary = run(tmp_path / "vae", tmp_path / "vae.safetensors")
    assert str(summary).startswith(f"{tmp_path / 'vae.safetensors'}: single LDM file, 154 tensors, 0.1 MB, float16\n")
    assert "norm_num_groups 4, attention inside levels" in str(summary)
    stated = json.loads(metadata_of(tmp_path / "vae.safetensors")["ldm_vae.config"])
    assert stated == json.loads((tmp_path / "vae/config.json").read_text())


@pytest.mark.parametrize(
    ("fields", "comfyui", "a1111"),
    [
        ({}, True, True),
        ({"block_out_channels": (128, 256, 512)}, True, False),  # f4, which ComfyUI recognises
        ({"latent_channels": 16}, True, False),
        ({"latent_channels": 64}, False, False),  # taken for HunyuanImage's
        ({"use_quant_conv": False, "use_post_quant_conv": False}, True, False),
        ({"block_out_channels": (64, 128, 256, 256)}, False, False),
    ],
)
def test_who_can_use_a_file_is_told(fields: dict[str, Any], comfyui: bool, a1111: bool) -> None:
    levels = len(fields.get("block_out_channels", (128, 256, 512, 512)))
    published = {"_class_name": "AutoencoderKL", "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
                 "down_block_types": DOWN[:1] * levels, "up_block_types": UP[:1] * levels}  # fmt: skip
    told = " ".join(reader_notes(published | fields))
    assert ("ComfyUI" not in told) == comfyui
    assert ("A1111" not in told) == a1111


def test_the_tensors_counted_are_those_of_the_output(tmp_path: Path) -> None:
    """Without attention in the middle the file holds twenty tensors more, which change nothing."""
    build(mid_block_add_attention=False).save_pretrained(tmp_path / "vae")
    summary = run(tmp_path / "vae", tmp_path / "vae.safetensors")
    written = load_file(tmp_path / "vae.safetensors")
    assert summary.num_tensors == len(written)
    assert summary.num_bytes == sum(tensor.nbytes for tensor in written.values())
    back = run(tmp_path / "vae.safetensors", tmp_path / "back")
    assert back.num_tensors == len(load_file(tmp_path / "back" / WEIGHTS_NAME)) == len(written) - 20
