"""`evaluate` on tiny autoencoders: numbers against a plain computation, refusals, and one process against two."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torchmetrics.image.fid import NoTrainInceptionV3

from ldm_vae.cli import main
from ldm_vae.config.commands.evaluate import EvaluateOptions
from ldm_vae.evaluation.evaluate import evaluate
from ldm_vae.evaluation.features import SetFeatures, load_set_features
from ldm_vae.evaluation.measure import Measurement
from ldm_vae.evaluation.results import Protocol, describe_scores
from ldm_vae.evaluation.summary import EvaluateSummary
from ldm_vae.metrics.reconstruction import ReconstructionMetrics
from ldm_vae.metrics.sets import set_distances
from tests.faults import full_disk
from tests.launching import run_launch
from tests.pictures import noise, picture
from tests.tiny import tiny_autoencoder


def save_autoencoder(folder: Path, *, seed: int, channels: int = 3, levels: int = 2) -> str:
    autoencoder = tiny_autoencoder(widths=(8, 16, 16)[:levels], in_channels=channels, out_channels=channels, seed=seed)
    autoencoder.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def vaes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("vaes")
    return [save_autoencoder(folder / name, seed=seed) for seed, name in enumerate(("first", "second"))]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures of different sizes, one grey, and one that is no picture."""
    folder = tmp_path_factory.mktemp("photos")
    for i, size in enumerate([(32, 32), (67, 41), (33, 53), (49, 35)]):
        picture(i, size=size).save(folder / f"{i}.png")
    Image.fromarray(noise(40, 40)).save(folder / "grey.png")
    (folder / "broken.png").write_bytes((folder / "1.png").read_bytes()[:300])
    return folder


def run(vaes: list[str], data: Path, output: Path, **options: object) -> EvaluateSummary:
    defaults = {"num_workers": 0, "perceptual": "none", "num_pictures": 2}
    return evaluate(EvaluateOptions(vae=vaes, data=str(data), output=str(output), **(defaults | options)))  # type: ignore[arg-type]


def test_numbers_are_those_of_the_pictures_a_user_gets(vaes: list[str], photos: Path, tmp_path: Path) -> None:
    summary = run(vaes, photos, tmp_path / "out", resolution=[32], perceptual="efficientnet_lite0", batch_size=2)
    for source, evaluation in zip(vaes, summary.evaluations, strict=True):
        autoencoder = AutoencoderKL.from_pretrained(source)
        scores = []
        for path in sorted(photos.glob("*.png")):
            if path.name == "broken.png":
                continue
            picture = Image.open(path).convert("RGB")
            side = min(picture.size)
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            box = (left, top, left + side, top + side)
            original = np.asarray(picture.resize((32, 32), Image.Resampling.BICUBIC, box=box), dtype=np.float64)
            images = torch.from_numpy(original / 127.5 - 1).permute(2, 0, 1)[None].float()
            with torch.no_grad():
                decoded = autoencoder.decode(autoencoder.encode(images).latent_dist.mean).sample[0]
            saved = np.round((decoded.clamp(-1, 1).permute(1, 2, 0).numpy() + 1) * 127.5)
            scores.append(10 * np.log10(255**2 / np.mean((saved - original) ** 2)))
        assert evaluation["psnr"] == pytest.approx(np.mean(scores), abs=0.05)  # half a pixel in where the middle is
        assert evaluation.num_images == 5
        assert evaluation.num_skipped == 1
    assert summary.evaluations[0]["psnr"] != summary.evaluations[1]["psnr"]
    assert [skipped.name for skipped in summary.skipped] == ["broken.png"]

    written = json.loads(summary.metrics.read_text())
    assert written["skipped"][0]["name"] == "broken.png"
    metrics = written["evaluations"][0]["metrics"]
    measured = {"psnr", "ssim", "efficientnet_lite0", "rkid_efficientnet_lite0", "rkid_paired_efficientnet_lite0"}
    assert measured | {"bits_per_dim", "latent_std"} <= metrics.keys()
    assert not any("inception" in name or "lpips" in name for name in metrics)
    assert all(metric["protocol"] for metric in metrics.values())
    assert "32x32" in metrics["psnr"]["protocol"]
    assert "float32" in metrics["psnr"]["protocol"]
    assert "whole windows only" in metrics["ssim"]["protocol"]
    assert "EfficientNet" in metrics["rkid_efficientnet_lite0"]["protocol"]
    assert summary.table.read_text().strip() in str(summary)
    assert "| first " in str(summary)
    grid = Image.open(tmp_path / "out" / "grid.png")
    assert grid.height > 2 * 32
    original = Image.open(photos / "0.png")  # 32x32 itself, so the grid holds its very pixels
    pixels, cell = np.asarray(grid), np.asarray(original)
    positions = np.argwhere((pixels == cell[0, 0]).all(-1))
    assert any((pixels[y : y + 32, x : x + 32].shape == cell.shape and (pixels[y : y + 32, x : x + 32] == cell).all())
               for y, x in positions)  # fmt: skip


def test_whole_pictures_are_cut_to_what_all_factors_divide(vaes: list[str], photos: Path, tmp_path: Path) -> None:
    coarser = save_autoencoder(tmp_path / "f4", seed=2, levels=3)
    summary = run([vaes[0], coarser], photos, tmp_path / "out")
    assert [evaluation.num_images for evaluation in summary.evaluations] == [5, 5]
    assert summary.evaluations[0].data_fingerprint == summary.evaluations[1].data_fingerprint
    assert "multiple of 4" in summary.evaluations[0].metrics["psnr"].protocol
    alone = run([vaes[0]], photos, tmp_path / "alone")
    assert alone.evaluations[0].data_fingerprint != summary.evaluations[0].data_fingerprint


def test_several_sizes_and_fewer_images(vaes: list[str], photos: Path, tmp_path: Path) -> None:
    summary = run(vaes[:1], photos, tmp_path / "out", resolution=[16, 32], num_images=3)
    assert [evaluation.resolution for evaluation in summary.evaluations] == [16, 32]
    assert [grid.name for grid in summary.grids] == ["grid-16.png", "grid-32.png"]
    assert all(grid.is_file() for grid in summary.grids)
    single = run(vaes[:1], photos, tmp_path / "single", resolution=[32], num_images=3)
    assert single.evaluations[0].metrics == summary.evaluations[1].metrics


@pytest.mark.parametrize("channels", [1, 4])
def test_other_numbers_of_channels(channels: int, photos: Path, tmp_path: Path) -> None:
    vae = save_autoencoder(tmp_path / "vae", seed=0, channels=channels)
    summary = run([vae], photos, tmp_path / "out", resolution=[32], perceptual="efficientnet_lite0")
    assert np.isfinite(summary.evaluations[0]["efficientnet_lite0"])


def test_output_of_another_kind_is_never_touched(vaes: list[str], photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(vaes[:1], photos, output, resolution=[16, 32])
    with pytest.raises(ValueError, match="overwrite"):
        run(vaes[:1], photos, output, resolution=[32])
    run(vaes[:1], photos, output, resolution=[32], overwrite=True)
    assert sorted(path.name for path in output.iterdir()) == [
        "grid.png", "metrics.json", "per_picture.jsonl", "pictures", "report.html", "table.md",
    ]  # fmt: skip
    (output / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        run(vaes[:1], photos, output, resolution=[32], overwrite=True)
    assert (output / "thesis.tex").is_file()


def test_what_does_not_fit_is_refused_in_one_line(vaes: list[str], photos: Path, tmp_path: Path) -> None:
    grey = save_autoencoder(tmp_path / "grey", seed=0, channels=1)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes(b"no picture")
    for match, sources, data, options in (
        ("resolution is 33.*take 32 or 34", vaes[:1], photos, {"resolution": [33]}),
        ("image channels", [vaes[0], grey], photos, {"resolution": [32]}),
        ("nowhere", ["./nowhere/vae"], photos, {}),
        ("data", vaes[:1], tmp_path / "nothing", {}),
        ("no images to measure", vaes[:1], broken, {"resolution": [32]}),
        (r"broken\.png", vaes[:1], photos, {"resolution": [32], "strict": True}),
    ):
        with pytest.raises(ValueError, match=match) as caught:
            run(sources, data, tmp_path / "out", **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.processes
def test_two_processes_find_what_one_finds(vaes: list[str], photos: Path, tmp_path: Path) -> None:
    alone = run(vaes, photos, tmp_path / "alone", resolution=[32])
    options = EvaluateOptions(
        vae=vaes, data=str(photos), output=str(tmp_path / "both"), resolution=[32], perceptual="none", num_workers=0
    )
    run_launch(evaluate, options, folder=tmp_path)
    both = json.loads((tmp_path / "both" / "metrics.json").read_text())
    for expected, found in zip(alone.evaluations, both["evaluations"], strict=True):
        assert found["num_images"] == 5  # of six, one unreadable, over two processes
        assert found["data_fingerprint"] == expected.data_fingerprint
        for name, metric in expected.metrics.items():
            assert found["metrics"][name]["value"] == pytest.approx(metric.value, rel=1e-4)  # a level may flip
    assert [skipped["name"] for skipped in both["skipped"]] == ["broken.png"]


def test_inception_is_used_where_its_weights_are_and_read_without_running_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert load_set_features().name == "efficientnet_lite0"  # type: ignore[union-attr]

    file = tmp_path / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    file.parent.mkdir()
    with monkeypatch.context() as patch:  # to build one without weights
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: None)
        patch.setattr(NoTrainInceptionV3, "load_state_dict", lambda *_: None)
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"])
    torch.save(network.state_dict(), file)
    features = load_set_features()
    assert features is not None
    assert (features.name, features.with_fid) == ("inception", True)
    assert features(torch.rand(2, 1, 20, 24) * 2 - 1).shape == (2, 2048)

    harmful = tmp_path / "harmful.pth"
    marker = tmp_path / "ran"
    harmful.write_bytes(pickle.dumps(_Runs(marker), protocol=2))
    with pytest.raises(ValueError, match=r"harmful\.pth"):
        load_set_features(inception_weights=str(harmful))
    assert not marker.exists()


def test_set_distances_are_named_for_their_network() -> None:
    metrics = ReconstructionMetrics(perceptual=None, latent_channels=4)
    images, moments, features = torch.zeros(4, 3, 8, 8), torch.ones(4, 4, 2, 2), torch.randn(4, 8)
    metrics.update(images, images, moments, moments)
    network = SetFeatures(name="inception", network=torch.nn.Identity(), with_fid=True, protocol="pool3")
    result = Measurement(summary=metrics.compute(), distances=set_distances(features, features + 1))
    protocol = Protocol(resolution=8, factor=2, bf16=True, perceptual=None, set_features=network)
    described = describe_scores(result, protocol=protocol)
    assert described["rfid_inception"].value == pytest.approx(8, rel=1e-4)
    assert "4 originals" in described["rkid_inception"].protocol
    assert "100 random subsets of at most 4" in described["rkid_inception"].protocol
    assert "fewer than the published 1000" in described["rkid_inception"].protocol
    assert "1 disjoint subsets of at most 4" in described["rkid_paired_inception"].protocol
    assert "bf16" in described["psnr"].protocol


def broken_copy(vae: str, folder: Path) -> str:
    """An autoencoder whose every picture is NaN in one channel."""
    broken = AutoencoderKL.from_pretrained(vae)
    broken.decoder.conv_out.bias.data[0] = float("nan")
    broken.save_pretrained(folder)
    return str(folder)


def test_a_broken_autoencoder_shows_and_spoils_no_other(vaes: list[str], photos: Path, tmp_path: Path) -> None:
    broken = broken_copy(vaes[0], tmp_path / "broken")
    options = {"resolution": [32], "perceptual": "efficientnet_lite0"}
    both = run([vaes[1], broken], photos, tmp_path / "both", **options)
    alone = run([vaes[1]], photos, tmp_path / "alone", **options)
    assert both.evaluations[0] == alone.evaluations[0]
    assert alone.problem is None
    assert both.problem is not None
    assert broken in both.problem
    assert vaes[1] not in both.problem
    assert "5 of 5 reconstructions hold NaN or infinity; no figure for psnr, ssim" in both.problem

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    written = json.loads(both.metrics.read_text(), parse_constant=refuse)
    score = written["evaluations"][1]["metrics"]["psnr"]
    assert (score["value"], score["value_not_finite"]) == (None, "nan")
    for name, score in written["evaluations"][1]["metrics"].items():
        depends_on_the_decoder = name in ("psnr", "ssim") or "efficientnet" in name
        assert (score["value"] is None) == depends_on_the_decoder, name


def test_what_has_no_figure_ends_with_another_status(
    vaes: list[str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, output = broken_copy(vaes[0], tmp_path / "broken"), tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "--vae", broken, "--data", str(photos), "--output", str(output), "--resolution", "32",
              "--num_workers", "0", "--perceptual", "none"])  # fmt: skip
    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert "nan" in printed.out  # the table is printed all the same
    assert f"ldm-vae: vae: {broken} at 32: 5 of 5 reconstructions hold NaN or infinity" in printed.err
    assert (output / "table.md").is_file()


def test_equal_protocols_have_equal_hashes_and_no_others(vaes: list[str], photos: Path, tmp_path: Path) -> None:
    def protocol(name: str, vae: str, **options: object) -> dict[str, object]:
        summary = run([vae], photos, tmp_path / name, **{"resolution": [16], "num_images": 2} | options)
        recorded = json.loads(summary.metrics.read_text())["evaluations"][0]["protocol"]
        assert recorded == summary.evaluations[0].protocol
        return recorded

    first = protocol("first", vaes[0])
    assert first["resolution"] == 16
    assert protocol("second", vaes[1], batch_size=1) == first
    others = [protocol("side", vaes[0], resolution=[32]), protocol("whole", vaes[0], resolution=None),
              protocol("distance", vaes[0], perceptual="efficientnet_lite0"),
              protocol("precision", vaes[0], mixed_precision="bf16")]  # fmt: skip
    hashes = {first["sha256"], *(other["sha256"] for other in others)}
    assert len(hashes) == 5


class _Runs:
    """A pickle that makes a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.marker,))


def test_a_full_disk_names_the_file_and_leaves_nothing(vaes: list[str], photos: Path, tmp_path: Path) -> None:
    told = r"/\S+\.(webp|jsonl|png) can't be written: File too large"
    with full_disk(after_bytes=2500), pytest.raises(OSError, match=told):
        run(vaes, photos, tmp_path / "out", resolution=[32])
    assert list(tmp_path.iterdir()) == []
