"""`evaluate` on a single file, of which not all is known."""

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from ldm_vae.config.commands.evaluate import EvaluateOptions
from ldm_vae.evaluation.evaluate import evaluate
from ldm_vae.models.layouts.ldm import ldm_state_dict
from tests.pictures import save_pictures
from tests.tiny import tiny_autoencoder


def test_a_single_file_takes_what_is_said_of_it(tmp_path: Path) -> None:
    """Groups and scaling that the file can't say; with two autoencoders nobody knows which is meant."""
    autoencoder = tiny_autoencoder()
    config = json.loads(autoencoder.to_json_string())
    foreign = ldm_state_dict(autoencoder.state_dict(), config=config)
    save_file({name: tensor.contiguous() for name, tensor in foreign.items()}, tmp_path / "vae.safetensors")
    autoencoder.save_pretrained(tmp_path / "vae")
    (tmp_path / "config.json").write_text('{"norm_num_groups": 4}')
    photos = save_pictures(tmp_path / "photos", count=2, size=(32, 32))

    def psnr(*sources: Path, **said: object) -> float:
        options = EvaluateOptions(
            vae=[str(source) for source in sources], data=str(photos), output=str(tmp_path / "out"), overwrite=True,
            perceptual="none", num_workers=0, **said,
        )  # type: ignore[arg-type]  # fmt: skip
        return evaluate(options).evaluations[0]["psnr"]

    said = {"vae_config": str(tmp_path / "config.json")}
    assert psnr(tmp_path / "vae.safetensors", **said) == pytest.approx(psnr(tmp_path / "vae"), rel=1e-6)
    with pytest.raises(ValueError, match="vae_config describes one autoencoder, but vae names 2"):
        psnr(tmp_path / "vae.safetensors", tmp_path / "vae", **said)
