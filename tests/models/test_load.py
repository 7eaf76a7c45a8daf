"""Autoencoders loaded from where people keep them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor

from ldm_vae.models.load import load_autoencoder, load_vae
from tests.tiny import random_images, tiny_family


def reconstruct(source: Path | str, images: Tensor) -> Tensor:
    return load_vae(source).family.reconstruct(images).images


def test_loads_a_folder_a_pipeline_and_a_single_file(tmp_path: Path) -> None:
    autoencoder = tiny_family().model
    autoencoder.save_pretrained(tmp_path / "vae")
    (tmp_path / "half").mkdir()
    autoencoder.half().save_pretrained(tmp_path / "half", variant="fp16")
    images = random_images()
    expected = reconstruct(tmp_path / "vae", images)
    for source in (tmp_path, str(tmp_path / "vae")):  # a pipeline's folder, and the model's
        assert not load_autoencoder(source).training
        torch.testing.assert_close(reconstruct(source, images), expected, rtol=0, atol=0)
    half = load_autoencoder(tmp_path / "half")
    assert half.dtype == torch.float32
    torch.testing.assert_close(reconstruct(tmp_path / "half", images), expected, rtol=0, atol=1e-2)


def test_what_is_no_autoencoder_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"--vae: .*empty holds no config\.json"):
        load_autoencoder(tmp_path / "empty", field="--vae")
    (tmp_path / "empty" / "config.yaml").touch()
    with pytest.raises(ValueError, match="it is a run: export it first"):
        load_autoencoder(tmp_path / "empty")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": UNet2DModel.__name__}))
    with pytest.raises(ValueError, match="holds a UNet2DModel, not an AutoencoderKL"):
        load_autoencoder(tmp_path)


def test_a_hub_id_without_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="neither a folder or file here nor a model that the hub could give") as error:
        load_autoencoder("nobody/nothing", field="model.pretrained")
    assert "\n" not in str(error.value)
