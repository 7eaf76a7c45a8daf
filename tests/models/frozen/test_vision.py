"""Frozen vision networks: what transformers' own image processors and forwards give, at any size."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from ldm_vae.models.frozen.trunk import Depth
from ldm_vae.models.frozen.vision import VisionNetwork, load_vision
from ldm_vae.models.resizing import resized
from ldm_vae.system.pixels import from_pixels
from tests.vision import CLASSES, PATCH, processor_of, save_vision

NAMES = {"siglip": "siglip2", "dinov2 with registers": "dinov2"}
BLOCKS = {"Dinov2Layer", "Dinov2WithRegistersLayer", "DINOv3ViTLayer", "SiglipEncoderLayer", "Siglip2EncoderLayer"}
every_kind = pytest.mark.parametrize("kind", CLASSES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vision")
    for kind in CLASSES:
        save_vision(kind, folder / kind)
    return folder


def load(folder: Path | None, kind: str, *, depth: Depth = "last") -> VisionNetwork:
    return load_vision(
        NAMES.get(kind, kind),  # type: ignore[arg-type]
        folder=None if folder is None else str(folder),
        depth=depth,
        choice="loss.alignment",
        field="loss.alignment_weights",
    )


def own_states(folder: Path, kind: str, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return the blocks' outputs and what the network ends with, by transformers' processor and forward alone."""
    model = getattr(transformers, f"{CLASSES[kind][0]}Model").from_pretrained(folder / kind)
    processor = processor_of(kind).from_pretrained(folder / kind)
    arguments: dict[str, Any] = {"return_tensors": "pt", "do_resize": False}
    if kind != "siglip2":
        arguments["do_center_crop"] = False
    inputs = dict(processor(images=list(pixels), **arguments))
    if kind == "siglip":
        inputs["interpolate_pos_encoding"] = True
    outputs: list[Tensor] = []  # `hidden_states` of transformers 4 have the last one normed
    for module in model.modules():
        if type(module).__name__ in BLOCKS:
            module.register_forward_hook(lambda *called: outputs.append(called[-1]))
    with torch.no_grad():
        last = model(**inputs).last_hidden_state
    return [output[0] if isinstance(output, tuple) else output for output in outputs], last


def random_pixels(height: int, width: int) -> Tensor:
    return torch.randint(256, (2, 3, height, width), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@every_kind
@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (3, 6)])
def test_features_are_those_of_transformers_own_processor_and_forward(
    folders: Path, kind: str, rows: int, columns: int
) -> None:
    pixels = random_pixels(PATCH * rows, PATCH * columns)
    blocks, last = own_states(folders, kind, pixels)
    images, places = from_pixels(pixels), rows * columns
    prefix = {"dinov2": 1, "dinov2 with registers": 4, "dinov3": 3}.get(kind, 0)
    (features,) = load(folders / kind, kind)(images)
    assert features.shape == (2, 16, rows, columns)
    expected = last[:, prefix:][:, :places].transpose(1, 2).unflatten(2, (rows, columns))
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    whole = load(folders / kind, kind, depth="all")
    layers = [layer.squeeze(-1).transpose(1, 2) for layer in whole(images)]
    assert len(layers) == len(blocks) == 5
    for layer, block in zip(layers[:-1], blocks[:-1], strict=True):
        torch.testing.assert_close(layer, block[:, : prefix + places], rtol=1e-4, atol=1e-5)
    # transformers 4 puts what the network ends with in the last block's place
    torch.testing.assert_close(whole.trunk.norm(layers[-1]), last[:, : prefix + places], rtol=1e-4, atol=1e-5)
    quarters = load(folders / kind, kind, depth="quarters")(images)
    for quarter, number in zip(quarters, [0, 1, 3, 4], strict=True):
        expected = layers[number][:, prefix:].transpose(1, 2).unflatten(2, (rows, columns))
        torch.testing.assert_close(quarter, expected, rtol=1e-4, atol=1e-5)


@every_kind
def test_any_size_is_scaled_as_its_own_processor_scales(folders: Path, kind: str) -> None:
    network = load(folders / kind, kind)
    pixels = random_pixels(23, 34)
    images = from_pixels(pixels)
    assert network(images)[0].shape == (2, 16, 6, 8)  # the nearest multiples of a patch
    assert network(images, (2, 3))[0].shape == (2, 16, 2, 3)
    processor = processor_of(kind).from_pretrained(folders / kind)
    if kind == "siglip2":
        return  # its processor chooses the size itself
    size = {"height": 8, "width": 12}
    expected = processor(images=list(pixels), size=size, do_center_crop=False, return_tensors="pt")["pixel_values"]
    trunk = network.trunk
    scaled = resized(images, (8, 12), kind=trunk.interpolation)
    ours = scaled * trunk.scale + trunk.shift
    assert (ours - expected).abs().max() < 0.06  # of 255 levels in some 4.4 units, the processor rounds to whole ones
    assert (ours - expected).abs().mean() < 0.01


def test_scaling_is_torchs_own_with_antialiasing() -> None:
    pictures = torch.randn(2, 3, 23, 34, generator=torch.Generator().manual_seed(0))
    for kind in ("bilinear", "bicubic"):
        expected = torch.nn.functional.interpolate(pictures, size=(8, 40), mode=kind, antialias=True)
        torch.testing.assert_close(resized(pictures, (8, 40), kind=kind), expected, rtol=1e-4, atol=1e-5)
    means = torch.nn.functional.adaptive_avg_pool2d(pictures, (8, 10))
    torch.testing.assert_close(resized(pictures, (8, 10), kind="area"), means)


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_alpha(folders: Path, channels: int) -> None:
    network = load(folders / "dinov2", "dinov2")
    images = torch.rand(1, channels, 16, 16) * 2 - 1
    as_rgb = images.repeat(1, 3, 1, 1) if channels == 1 else images[:, :3]
    assert torch.equal(network(images)[0], network(as_rgb)[0])


def test_it_never_trains_and_passes_a_gradient_on(folders: Path) -> None:
    network = load(folders / "dinov3", "dinov3").train()
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    images = (torch.rand(1, 3, 16, 16) * 2 - 1).requires_grad_()
    network(images)[0].square().sum().backward()
    assert images.grad.abs().sum() > 0


def test_efficientnet_gives_maps_of_its_strides() -> None:
    images = torch.rand(1, 3, 64, 48) * 2 - 1
    (last,) = load(None, "efficientnet_lite0")(images)
    assert last.shape == (1, 112, 4, 3)
    network = load(None, "efficientnet_lite0", depth="quarters")
    for each, width, stride in zip(network(images), network.trunk.channels, network.trunk.strides, strict=True):
        assert each.shape == (1, width, 64 // stride, 48 // stride)


# What is missing or wrong is one line


def refused(folder: Path | None, kind: str = "dinov2") -> str:
    with pytest.raises(ValueError, match=r".") as error:
        load(folder, kind)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_weights_are_one_line_that_says_how_to_get_them(tmp_path: Path, folders: Path) -> None:
    how = "`hf download facebook/dinov2-base --local-dir FOLDER` gets one"
    assert refused(None) == (
        f"loss.alignment is dinov2: name the folder that holds it in loss.alignment_weights; {how}"
    )
    assert str(tmp_path) in refused(tmp_path)
    assert refused(tmp_path).endswith(how)
    assert "holds siglip2" in refused(folders / "siglip")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert "of the type bert" in refused(tmp_path)
    (tmp_path / "config.json").write_text("no json")
    assert "config.json can't be read" in refused(tmp_path)


def test_damaged_or_partial_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_vision("dinov2", tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    lacking = {name: tensor for name, tensor in whole.items() if not name.startswith("layernorm")}
    save_file(lacking, file, metadata={"format": "pt"})
    assert "it lacks layernorm" in refused(tmp_path)
    file.write_bytes(file.read_bytes()[:-100])
    assert str(tmp_path) in refused(tmp_path)
    file.unlink()
    torch.save(whole, tmp_path / "pytorch_model.bin")
    assert str(tmp_path) in refused(tmp_path)


def test_the_folders_own_statistics_are_taken(tmp_path: Path) -> None:
    save_vision("dinov2", tmp_path)
    file = tmp_path / "preprocessor_config.json"
    fields = json.loads(file.read_text())
    file.write_text(json.dumps(fields | {"image_mean": [0.25] * 3, "image_std": [2.0] * 3, "resample": 2}))
    trunk = load(tmp_path, "dinov2").trunk
    torch.testing.assert_close(trunk.scale.flatten(), torch.full((3,), 0.25))
    torch.testing.assert_close(trunk.shift.flatten(), torch.full((3,), 0.125))
    assert trunk.interpolation == "bilinear"


def test_the_missing_package_is_named(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install 'ldm-vae[vision]'" in refused(folders / "dinov2")
