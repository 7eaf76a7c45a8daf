"""Verdicts with their intervals."""

import math

import pytest

from ldm_vae.probing.results import Probed, Training, compare, probe_table

SCORES = ["fd_x", "kd_x"]


def probed(name: str, *values: float) -> Probed:
    trainings = [
        Training(seed=seed, seconds=2.0, scores={"fd_x": value, "kd_x": value / 100})
        for seed, value in enumerate(values)
    ]
    return Probed(
        vae=f"runs/{name}", name=name, vae_fingerprint=name, factor=8, latent_shape=[4, 32, 32], panel=None,
        reconstruction={"fd_x": 1.0, "kd_x": 0.0}, trainings=trainings,
    )  # fmt: skip


def test_interval_is_student_s_with_pooled_variance() -> None:
    reference, other = probed("reference", 10.0, 12.0), probed("other", 14.0, 18.0)
    verdict = compare(other, reference, among=[reference, other], score="fd_x")
    assert verdict.difference == pytest.approx(5)
    pooled = (2.0 + 8.0) / 2  # variances of two seeds each
    assert verdict.margin == pytest.approx(4.30 * math.sqrt(pooled * (1 / 2 + 1 / 2)))  # two degrees of freedom
    assert str(verdict) == "not told apart"


def test_verdicts() -> None:
    reference = probed("reference", 10.0, 10.2)
    others = [probed("good", 7.0, 7.1), probed("bad", 20.0, 20.3), probed("alike", 10.1, 10.3)]
    among = [reference, *others]
    found = [str(compare(each, reference, among=among, score="fd_x")) for each in others]
    assert found == ["better", "worse", "not told apart"]
    alone = probed("one seed", 5.0)
    assert str(compare(alone, probed("reference", 10.0), among=[alone], score="fd_x")) == "not told apart"
    broken = probed("broken", math.nan, math.nan)
    assert str(compare(broken, reference, among=[reference, broken], score="fd_x")) == "not told apart"


def test_table_has_the_best_first() -> None:
    among = [probed("reference", 10.0, 10.2), probed("good", 7.0, 7.1), probed("broken", math.nan, 1.0)]
    lines = probe_table(among, scores=SCORES).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["good", "reference", "broken"]
    assert "7.05 ± 0.071" in lines[2]
    assert "| reference " in lines[3]
    assert " 4 " in lines[2]  # seconds
