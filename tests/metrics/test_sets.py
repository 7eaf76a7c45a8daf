"""Distances between sets of features against torch-fidelity's and plain formulas."""

import math

import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torchmetrics.image.kid import poly_mmd

from ldm_vae.metrics.sets import frechet_distance, kernel_distance, paired_discrepancy, set_distances


def test_published_distances_are_torch_fidelity_s() -> None:
    """KID with its own subsets, which are smaller than the set, and FID."""
    generator = torch.Generator().manual_seed(2)
    reference = torch.randn(60, 8, generator=generator, dtype=torch.float64)
    features = 0.8 * reference + 0.3 * torch.randn(60, 8, generator=generator, dtype=torch.float64) + 0.1
    published = kid_features_to_metric(reference, features, kid_subset_size=25, verbose=False)
    ours = kernel_distance(reference, features, max_subset_size=25)
    assert ours.value == pytest.approx(published[KEY_METRIC_KID_MEAN], rel=1e-9)
    assert ours.std == pytest.approx(published[KEY_METRIC_KID_STD], rel=1e-9)
    statistics = [fid_features_to_statistics(each) for each in (reference, features)]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert set_distances(reference, features).fid == pytest.approx(expected, rel=1e-5)


def test_frechet_distance_of_fewer_pictures_than_features_is_torch_fidelity_s_too() -> None:
    generator = torch.Generator().manual_seed(3)
    reference = torch.randn(30, 40, generator=generator, dtype=torch.float64)
    features = 0.5 * torch.randn(25, 40, generator=generator, dtype=torch.float64) + 0.2
    statistics = [fid_features_to_statistics(each) for each in (reference, features)]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(reference, features) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(reference, reference) == pytest.approx(0, abs=1e-9)
    assert math.isnan(frechet_distance(reference, features * math.nan))


def test_paired_kernel_distance_of_reconstructions_is_unbiased() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(num_images: int) -> tuple[Tensor, Tensor]:
        features = torch.randn(num_images, 16, generator=generator, dtype=torch.float64)
        noise = torch.randn(num_images, 16, generator=generator, dtype=torch.float64)
        return features, 0.6 * features + 0.1 * noise

    expected = poly_mmd(draw(4000)[0], draw(4000)[1])  # independent, so the usual estimate is right
    pairs = [draw(30) for _ in range(400)]
    ours = torch.stack([paired_discrepancy(*pair) for pair in pairs])
    usual = torch.stack([poly_mmd(*pair) for pair in pairs])
    standard_error = ours.std() / math.sqrt(400)
    assert (ours.mean() - expected).abs() < 3 * standard_error + 0.01
    assert expected - usual.mean() > 10 * standard_error  # what pairs do to it
    features = draw(30)[0]
    assert set_distances(features, features).paired_kid.value == pytest.approx(0, abs=1e-12)


def test_set_distances_use_every_image_once_and_repeat() -> None:
    generator = torch.Generator().manual_seed(1)
    reference = torch.randn(50, 8, generator=generator)
    features = reference + 0.5
    distances = set_distances(reference, features, max_subset_size=20)
    assert (distances.paired_kid.num_subsets, distances.paired_kid.subset_size) == (3, 17)
    assert (distances.kid.num_subsets, distances.kid.subset_size) == (100, 20)
    assert distances == set_distances(reference, features, max_subset_size=20)
    assert distances.fid == pytest.approx(8 * 0.5**2, rel=1e-4)  # equal covariances: the distance of the means
    assert set_distances(reference, features, with_fid=False).fid is None
    features[3] = float("nan")  # of a broken autoencoder, beside which others are measured
    broken = set_distances(reference, features)
    assert math.isnan(broken.kid.value)
    assert math.isnan(broken.paired_kid.value)
    assert broken.fid is None
