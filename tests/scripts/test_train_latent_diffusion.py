"""The example script: its loss falls, and it draws a picture."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from ldm_vae.encoding.encode import encode
from ldm_vae.probing.network import LatentTransformer
from tests.encodings import options, save_vae
from tests.launching import SCRIPTS, finish, run_script, start_forked
from tests.pictures import picture


@pytest.mark.processes
def test_a_small_transformer_learns_the_latents(tmp_path: Path) -> None:
    vae = save_vae(tmp_path / "vae")
    for i in range(40):
        folder = tmp_path / "data" / ("a" if i % 2 else "b")
        folder.mkdir(parents=True, exist_ok=True)
        picture(i).save(folder / f"{i}.png")
    encode(options(vae, str(tmp_path / "data"), tmp_path / "latents"))
    command = [str(SCRIPTS / "train_latent_diffusion.py"), "--latents", str(tmp_path / "latents"), "--vae", vae]
    command += ["--output", str(tmp_path / "out"), "--steps", "120", "--width", "64", "--depth", "2"]
    command += ["--learning_rate", "4e-3", "--num_samples", "4"]
    printed = tmp_path / "printed.txt"
    finish([start_forked(run_script, *command, output=printed)], folder=tmp_path)
    found = re.search(r"loss over the first 30 steps (\S+), over the last 30 (\S+)", printed.read_text())
    assert found is not None
    # no velocity at all has a loss of 2; less than about 1.5 isn't to be had, as these posteriors are mostly noise
    assert 1 < float(found[2]) < min(1.7, float(found[1]))
    assert Image.open(tmp_path / "out" / "samples.png").size > (4 * 16, 16)
    arguments = json.loads((tmp_path / "out" / "transformer.json").read_text())
    assert arguments["num_classes"] == 2  # the folders
    LatentTransformer(**arguments).load_state_dict(load_file(tmp_path / "out" / "transformer.safetensors"))
