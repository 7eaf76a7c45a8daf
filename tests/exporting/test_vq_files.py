"""VQ autoencoders in single files: there and back bit by bit, and files that say nothing but their tensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import VQModel
from safetensors.torch import load_file, save_file

from ldm_vae.models.load import load_vae
from tests.exporting.ldm_files import assert_same, folder_bytes, metadata_of, run
from tests.tiny import random_images, tiny_family


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    family = tiny_family(family="vq", codebook_size=20, codebook_dim=3, attention_levels=[1])
    family.model.register_to_config(scaling_factor=0.4)
    family.model.save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def test_round_trips_are_exact(folder: Path, tmp_path: Path) -> None:
    told = run(folder, tmp_path / "one.safetensors")
    assert any("can't use a codebook" in note for note in told.notes)
    run(tmp_path / "one.safetensors", tmp_path / "back")
    run(tmp_path / "back", tmp_path / "two.safetensors")
    assert folder_bytes(tmp_path / "back") == folder_bytes(folder)
    one, two = (tmp_path / "one.safetensors", tmp_path / "two.safetensors")
    assert_same(load_file(one), load_file(two))
    assert metadata_of(one) == metadata_of(two)
    names = load_file(one).keys()
    assert {"quantize.embedding.weight", "encoder.down.1.attn.0.q.weight", "post_quant_conv.bias"} <= names
    images = random_images()
    expected = VQModel.from_pretrained(folder)(images).sample
    torch.testing.assert_close(load_vae(tmp_path / "one.safetensors").model(images).sample, expected)


def test_a_checkpoint_of_others_is_read_with_what_it_cannot_say(folder: Path, tmp_path: Path) -> None:
    """As taming-transformers saves it: a pickle with the losses' weights, without a config."""
    run(folder, tmp_path / "one.safetensors")
    state = load_file(tmp_path / "one.safetensors") | {"loss.discriminator.main.0.weight": torch.zeros(1)}
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    (tmp_path / "config.json").write_text(json.dumps({"norm_num_groups": 4}))
    told = run(tmp_path / "last.ckpt", tmp_path / "read", vae_config=str(tmp_path / "config.json"))
    assert told.left_out == ["loss.discriminator.main.0.weight"]
    assert told.assumed["scaling_factor"] == 1.0
    read = VQModel.from_pretrained(tmp_path / "read")
    assert_same(dict(read.state_dict()), dict(VQModel.from_pretrained(folder).state_dict()))
    assert (read.config.num_vq_embeddings, read.config.vq_embed_dim) == (20, 3)


def test_a_codebook_of_another_shape_is_named(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "one.safetensors")
    state = load_file(tmp_path / "one.safetensors")
    del state["quant_conv.bias"]
    save_file(state, tmp_path / "cut.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"norm_num_groups": 4}))
    with pytest.raises(ValueError, match=r"cut\.safetensors: .*missing: quant_conv\.bias"):
        run(tmp_path / "cut.safetensors", tmp_path / "read", vae_config=str(tmp_path / "config.json"))
