"""`export` of a real run: scaling against drawn samples, bits against the checkpoint, the card's own snippet run."""

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from huggingface_hub import ModelCard, constants
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import ldm_vae.exporting.export
import ldm_vae.exporting.files
from ldm_vae.config.commands.export import ExportOptions
from ldm_vae.config.data import DataConfig
from ldm_vae.config.loss import LossConfig
from ldm_vae.config.model import ModelConfig
from ldm_vae.config.run import Config
from ldm_vae.config.train import TrainConfig
from ldm_vae.exporting.export import ExportSummary, export
from ldm_vae.exporting.files import check_equal
from ldm_vae.images.transforms import to_tensor
from ldm_vae.models.families import family_of
from ldm_vae.models.families.family import Family
from ldm_vae.models.load import load_autoencoder
from ldm_vae.models.rescaling import _divide_stream as divide_stream
from ldm_vae.training.loop import train
from tests.exporting.hub_standin import REPO, TOKEN, Hub
from tests.launching import ENVIRONMENT, run_with_torchrun
from tests.pictures import save_pictures
from tests.tiny import tiny_autoencoder


def train_run(folder: Path, model: ModelConfig) -> Path:
    photos = save_pictures(folder / "photos", count=6, size=(16, 16))
    (folder / "photos" / "broken.png").write_bytes(b"no picture")
    validation = save_pictures(folder / "held_out", count=3, size=(16, 16), first_seed=6)
    config = Config(
        output_dir=str(folder / "run"),
        report_to="none",
        model=model,
        data=DataConfig(train=photos, validation=validation, resolution=16, num_workers=0),
        loss=LossConfig(perceptual="none", disc_weight=0.0),
        train=TrainConfig(batch_size=2, max_train_steps=2, mixed_precision="no", compile="off"),
    )
    train(config)
    return folder / "run"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub.running() as hub:
        yield hub


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = ModelConfig(block_out_channels=[8, 16], layers_per_block=1, norm_num_groups=4)
    return train_run(tmp_path_factory.mktemp("trained"), model)


def export_run(run: Path, output: Path, **options: object) -> ExportSummary:
    return export(ExportOptions(run=str(run), output=str(output), num_workers=0, **options))  # type: ignore[arg-type]


def photos_of(run: Path) -> Tensor:
    """The training images that can be read, [6, 3, 16, 16]."""
    paths = sorted((run.parent / "photos").glob("0*.png"))
    return torch.stack([to_tensor(Image.open(path)) for path in paths])


def drawn_samples(autoencoder: AutoencoderKL, images: Tensor) -> Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        posterior = autoencoder.encode(images).latent_dist
        return torch.cat([posterior.sample() for _ in range(400)]).double()


def test_weights_are_the_checkpoint_s_and_the_scaling_that_of_samples(run: Path, tmp_path: Path) -> None:
    summary = export_run(run, tmp_path / "vae")
    autoencoder = AutoencoderKL.from_pretrained(tmp_path / "vae")
    trained = load_file(run / "checkpoint-000002" / "ema.safetensors")
    assert autoencoder.state_dict().keys() == trained.keys()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in autoencoder.state_dict().items())
    samples = drawn_samples(autoencoder, photos_of(run))
    assert autoencoder.config.scaling_factor * samples.std().item() == pytest.approx(1, abs=3e-3)
    assert autoencoder.config.shift_factor is None
    assert autoencoder.config.force_upcast is False
    assert autoencoder.config.sample_size == 512
    assert summary.latents.num_images == 6
    assert [skipped.name for skipped in summary.skipped] == ["broken.png"]
    assert "broken.png" in str(summary)
    raw = export_run(run, tmp_path / "raw", weights="raw")
    assert raw.config["scaling_factor"] != summary.config["scaling_factor"]


@pytest.mark.parametrize(("target", "shifted"), [("sd", False), ("sdxl", False), ("sd3", True), ("flux", True)])
def test_targets_that_need_a_shift_get_one(target: str, shifted: bool, run: Path, tmp_path: Path) -> None:
    summary = export_run(run, tmp_path / "vae", target=target)
    config = AutoencoderKL.load_config(tmp_path / "vae")
    if shifted:
        assert config["shift_factor"] == summary.latents.mean
        samples = drawn_samples(AutoencoderKL.from_pretrained(tmp_path / "vae"), photos_of(run))
        normalised = (samples - config["shift_factor"]) * config["scaling_factor"]
        assert normalised.mean().item() == pytest.approx(0, abs=0.01)
        assert normalised.std().item() == pytest.approx(1, abs=0.01)
    else:
        assert config["shift_factor"] is None
    assert config["latents_mean"] is None


def test_statistics_a_channel_for_sdxl(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "vae", target="sdxl", per_channel=True)
    autoencoder = AutoencoderKL.from_pretrained(tmp_path / "vae")
    mean, std = (torch.tensor(autoencoder.config[name]).view(1, 4, 1, 1) for name in ("latents_mean", "latents_std"))
    samples = drawn_samples(autoencoder, photos_of(run))
    normalised = (samples - mean) * autoencoder.config.scaling_factor / std  # as SDXL's pipelines do
    torch.testing.assert_close(normalised.mean(dim=(0, 2, 3)), torch.zeros(4).double(), rtol=0, atol=0.02)
    torch.testing.assert_close(normalised.std(dim=(0, 2, 3)), torch.ones(4).double(), rtol=0, atol=0.02)
    with pytest.raises(ValueError, match="per_channel"):
        export_run(run, tmp_path / "other", target="sd3", per_channel=True)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_types_of_stored_weights(dtype: str, run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "vae", dtype=dtype)
    variant = "fp16" if dtype == "float16" else None
    files = {path.name for path in (tmp_path / "vae").glob("*.safetensors")}
    assert files == {"diffusion_pytorch_model.fp16.safetensors" if variant else "diffusion_pytorch_model.safetensors"}
    torch_dtype = getattr(torch, dtype)
    autoencoder = AutoencoderKL.from_pretrained(tmp_path / "vae", variant=variant, torch_dtype=torch_dtype)
    trained = load_file(run / "checkpoint-000002" / "ema.safetensors")
    for name, tensor in autoencoder.state_dict().items():
        assert torch.equal(tensor, trained[name].to(torch_dtype))
    load_autoencoder(tmp_path / "vae")


def test_single_file(run: Path, tmp_path: Path) -> None:
    summary = export_run(run, tmp_path / "vae.safetensors", format="ldm")
    autoencoder = load_autoencoder(tmp_path / "vae.safetensors")
    trained = load_file(run / "checkpoint-000002" / "ema.safetensors")
    assert all(torch.equal(tensor, trained[name]) for name, tensor in autoencoder.state_dict().items())
    assert autoencoder.config.scaling_factor == summary.config["scaling_factor"]
    assert [path.name for path in tmp_path.iterdir()] == ["vae.safetensors"]
    with pytest.raises(ValueError, match="overwrite"):
        export_run(run, tmp_path / "vae.safetensors", format="ldm")


@pytest.mark.parametrize(
    ("options", "mode", "tolerance"),
    [
        ({}, "RGB", {"rtol": 1e-5, "atol": 1e-5}),
        ({"dtype": "float16", "target": "sd3"}, "RGB", {"rtol": 0, "atol": 0.01}),
        ({"target": "sdxl", "per_channel": True}, "L", {"rtol": 1e-5, "atol": 1e-5}),
    ],
)
def test_the_card_s_snippet_runs(
    options: dict[str, object],
    mode: str,
    tolerance: dict[str, float],
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    export_run(run, tmp_path / "vae", **options)
    snippet = re.findall(r"```python\n(.*?)```", (tmp_path / "vae" / "README.md").read_text(), flags=re.DOTALL)[0]
    Image.open(run.parent / "photos" / "0000.png").convert(mode).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    torch.manual_seed(0)
    exec(compile(snippet, "README.md", "exec"), names)
    assert Image.open(tmp_path / "reconstruction.png").size == (16, 16)

    autoencoder, images, latents = names["vae"], names["images"], names["latents"]
    assert isinstance(autoencoder, AutoencoderKL)
    torch.manual_seed(0)
    with torch.no_grad():
        z = autoencoder.encode(images).latent_dist.sample().float()
    config = autoencoder.config
    mean, std = 0.0 if config.shift_factor is None else config.shift_factor, 1.0
    if config.latents_mean is not None:
        mean, std = (torch.tensor(config[name]).view(1, 4, 1, 1) for name in ("latents_mean", "latents_std"))
    torch.testing.assert_close(latents, (z - mean) * config.scaling_factor / std, check_dtype=False, **tolerance)
    torch.testing.assert_close(names["z"], z, check_dtype=False, **tolerance)


def test_the_card_tells_recipe_metrics_and_licence_and_no_path(run: Path, tmp_path: Path) -> None:
    summary = export_run(run, tmp_path / "vae", license="apache-2.0")
    card = ModelCard.load(tmp_path / "vae" / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "diffusers"
    assert str(tmp_path) not in str(card)
    assert str(run.parent) not in str(card)
    assert f"{summary.metrics['psnr'].value:.5g} dB" in card.text
    assert "3 images of `held_out` (validation images)" in card.text
    assert "16x16" in card.text
    assert "block_out_channels: [8, 16]" in card.text
    picture = Image.open(tmp_path / "vae" / "reconstruction.png")
    assert picture.height > 3 * 16
    measurements = json.loads((tmp_path / "vae" / "measurements.json").read_text())
    assert measurements["latents"]["num_images"] == 6
    assert measurements["precision"]["magnitudes"]["decoder.conv_out"] > 0


def test_a_tile_is_no_smaller_than_pictures_usually_are(run: Path, tmp_path: Path) -> None:
    """The tiles of diffusers are of `sample_size`; a training on small crops must not make them small."""
    export_run(run, tmp_path / "vae")
    autoencoder = AutoencoderKL.from_pretrained(tmp_path / "vae")
    images = torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        whole = autoencoder(images).sample
        autoencoder.enable_tiling()
        assert torch.equal(autoencoder(images).sample, whole)


def test_a_pretrained_model_keeps_its_tiles_unless_nobody_chose_them(tmp_path: Path) -> None:
    for chosen, expected in ((256, 256), (32, 512)):  # 32 is the class's default
        folder = tmp_path / str(chosen)
        tiny_autoencoder(widths=(8,), sample_size=chosen).save_pretrained(folder / "pretrained")
        run = train_run(folder, ModelConfig(pretrained=str(folder / "pretrained")))
        assert export_run(run, folder / "vae").config["sample_size"] == expected


def test_others_may_read_an_export_as_the_umask_lets_them(run: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        export_run(run, tmp_path / "vae")
        export_run(run, tmp_path / "vae.safetensors", format="ldm")
    finally:
        os.umask(before)
    written = [*(tmp_path / "vae").iterdir(), tmp_path / "vae.safetensors"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o640}


def test_a_single_file_comes_with_what_others_make_of_it(run: Path, tmp_path: Path) -> None:
    summary = export_run(run, tmp_path / "vae.safetensors", format="ldm")
    assert "ComfyUI and A1111 build kl-f8 whatever a file holds" in str(summary)
    assert export_run(run, tmp_path / "vae").notes == []


def test_names_with_markup_and_newlines_are_shown_as_they_are(tmp_path: Path) -> None:
    model = ModelConfig(block_out_channels=[8], layers_per_block=1, norm_num_groups=4)
    run = train_run(tmp_path, model)
    data = save_pictures(tmp_path / "a`b\n# not a heading", count=2, size=(16, 16))
    name = "*vae*\n```[x]|\x1b[2J"
    summary = export_run(run, tmp_path / name, data=data)
    card = (tmp_path / name / "README.md").read_text()
    assert "\x1b" not in card + str(summary)
    assert str(summary).startswith(f"{tmp_path}/*vae*\\n```[x]|\\x1b[2J: checkpoint-000002")
    assert r"# \*vae\*\\n\`\`\`\[x\]\|\\x1b\[2J" in card.splitlines()
    assert "``a`b\\n# not a heading``" in card
    assert "# not a heading" not in card.splitlines()
    load = re.findall(r"from_pretrained\((.*)\)\.eval", card)[0]
    assert eval(load) == name


@pytest.mark.skipif(os.geteuid() != 0, reason="a mount needs root")
def test_an_empty_mount_point_is_filled(run: Path, tmp_path: Path) -> None:
    """As containers and cloud jobs give their output folder; it can't be renamed away."""
    (tmp_path / "mounted").mkdir()
    export_run(run, tmp_path / "vae.safetensors", format="ldm")
    script = tmp_path / "write.py"
    script.write_text(
        "import os\nfrom ldm_vae.cli import main\n"
        f"main(['export', '--run', {str(run)!r}, '--output', 'mounted', '--num_workers', '0'])\n"
        "print(*sorted(os.listdir('mounted')))\n"
        "main(['convert', 'vae.safetensors', 'mounted', '--overwrite'])\n"
        "print(*sorted(os.listdir('mounted')))\n"
    )
    command = f"mount -t tmpfs none mounted || exit 77; {sys.executable} write.py"
    ended = subprocess.run(
        ["unshare", "-m", "sh", "-c", command],
        cwd=tmp_path,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    if ended.returncode == 77 or "unshare" in ended.stderr:
        pytest.skip("mounts aren't allowed here")
    assert ended.returncode == 0, ended.stderr
    whole = "README.md config.json diffusion_pytorch_model.safetensors measurements.json reconstruction.png"
    lines = ended.stdout.splitlines()
    assert whole in lines
    assert lines[-1] == "config.json diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("name", ["vae", "vae.safetensors"])
def test_what_cannot_be_written_is_found_before_measuring(
    name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ldm_vae.exporting.export, "measure_latents", lambda *_, **__: pytest.fail("it was measured"))
    (tmp_path / "file").write_text("no folder")
    layout = "ldm" if name.endswith(".safetensors") else "diffusers"
    for parent, reason in ((tmp_path / "file", "is a file"), (Path("/proc/here"), "can't be written")):
        with pytest.raises(ValueError, match=reason):
            export_run(run, parent / name, format=layout)


def test_push_to_hub_uploads_the_whole_export(
    run: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    summary = export_run(run, tmp_path / "vae", push_to_hub=REPO)
    assert f"uploaded to {hub.endpoint}/{REPO}" in str(summary)
    assert hub.visibilities == ["private"]
    assert hub.files == {path.name: path.read_bytes() for path in (tmp_path / "vae").iterdir()}
    assert f'from_pretrained("{REPO}")'.encode() in hub.files["README.md"]


def test_overflow_sets_force_upcast_and_can_be_repaired(tmp_path: Path) -> None:
    pretrained = tiny_autoencoder(widths=(8,), shift_factor=0.5)
    divide_stream(pretrained.decoder, 2.0**-17)
    pretrained.save_pretrained(tmp_path / "pretrained")
    run = train_run(tmp_path, ModelConfig(pretrained=str(tmp_path / "pretrained")))
    summary = export_run(run, tmp_path / "vae")
    assert summary.config["force_upcast"] is True
    assert summary.config["shift_factor"] is None  # the pretrained model's is no longer true
    assert "--repair" in summary.precision_statement
    repaired = export_run(run, tmp_path / "repaired", repair=True)
    assert repaired.config["force_upcast"] is False
    images = photos_of(run)
    with torch.no_grad():
        before, after = (AutoencoderKL.from_pretrained(tmp_path / name)(images).sample for name in ("vae", "repaired"))
        half = AutoencoderKL.from_pretrained(tmp_path / "repaired", torch_dtype=torch.float16)(images.half()).sample
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)
    assert half.isfinite().all()


def test_output_is_refused_before_any_work_and_never_lost(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "vae"
    first = export_run(run, output, num_images=2)
    with pytest.raises(ValueError, match="overwrite"):
        export_run(run, output)
    with monkeypatch.context() as patch:

        def full_disk(*_: object, **__: object) -> None:
            raise OSError("no space left on device")

        patch.setattr(ldm_vae.exporting.files, "save_grid", full_disk)
        with pytest.raises(OSError, match="no space"):
            export_run(run, output, overwrite=True)
    assert AutoencoderKL.load_config(output)["scaling_factor"] == first.config["scaling_factor"]
    second = export_run(run, output, overwrite=True)
    assert AutoencoderKL.load_config(output)["scaling_factor"] == second.config["scaling_factor"]
    assert second.config["scaling_factor"] != first.config["scaling_factor"]
    assert [path.name for path in tmp_path.iterdir()] == ["vae"]
    (output / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        export_run(run, output, overwrite=True)
    assert (output / "thesis.tex").read_text() == "years of work"


def test_what_does_not_read_back_is_an_error(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "vae")

    def load() -> Family:
        return family_of(AutoencoderKL.from_pretrained(tmp_path / "vae"))

    check_equal(load(), load())
    changed = load()
    changed.model.decoder.conv_out.bias.data[0] += 1e-7
    with pytest.raises(RuntimeError, match=r"decoder\.conv_out\.bias"):
        check_equal(load(), changed)
    rescaled = load()
    rescaled.model.register_to_config(scaling_factor=0.18215)
    with pytest.raises(RuntimeError, match="scaling_factor"):
        check_equal(load(), rescaled)


def test_what_cannot_be_used_is_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    for match, source, options in (
        ("no run", tmp_path, {}),
        ("checkpoint-000009", run, {"checkpoint": "checkpoint-000009"}),
        ("nowhere", run, {"data": str(tmp_path / "nowhere")}),
        (r"broken\.png", run, {"strict": True}),
        (r"\.safetensors", run, {"format": "ldm"}),
    ):
        with pytest.raises(ValueError, match=match) as caught:
            export_run(source, tmp_path / "vae", **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.processes
def test_two_processes_measure_what_one_measures(run: Path, tmp_path: Path) -> None:
    alone = export_run(run, tmp_path / "alone")
    options = ExportOptions(run=str(run), output=str(tmp_path / "both"), num_workers=0)
    run_with_torchrun("ldm_vae.exporting.export:export", options, folder=tmp_path)
    measurements = json.loads((tmp_path / "both" / "measurements.json").read_text())
    assert measurements["latents"]["num_images"] == 6
    assert measurements["latents"]["std"] == pytest.approx(alone.latents.std, rel=1e-6)
    assert measurements["reconstruction"]["metrics"]["psnr"]["value"] == pytest.approx(alone.metrics["psnr"].value)
