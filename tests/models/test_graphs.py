"""Calls that are recorded and replayed give what the calls give; a recorder on the CPU stands in for CUDA's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm_vae.models import graphs
from ldm_vae.models.graphs import Graphed
from tests.models.recording import ReplayingRecorder


def double(values: Tensor) -> Tensor:
    return 2 * values


def test_calls_are_replayed_from_the_third_on() -> None:
    recorder = ReplayingRecorder()
    graphed = Graphed(double, record=recorder)
    results = [(values, graphed(values)) for values in torch.randn(5, 2, 3, 4, 4)]
    assert recorder.recorded == [torch.Size([2, 3, 4, 4])]
    assert recorder.replayed == 1 + 3  # the comparison, and the calls after the second
    for values, result in results:  # no later replay overwrote it
        assert torch.equal(result, 2 * values)


def test_each_shape_and_layout_has_a_recording_up_to_a_number() -> None:
    recorder = ReplayingRecorder()
    graphed = Graphed(double, record=recorder)
    inputs = [torch.randn(1, 3, 4, width) for width in range(2, 8)]
    inputs.insert(1, inputs[0].to(memory_format=torch.channels_last))
    for values in inputs:
        for _ in range(3):
            assert torch.equal(graphed(values), 2 * values)
    assert len(recorder.recorded) == graphs.MOST_GRAPHS
    assert recorder.recorded[0] == recorder.recorded[1]


def test_large_calls_are_not_recorded() -> None:
    recorder = ReplayingRecorder()
    for graphed in (Graphed(double, pixels=64, record=recorder), Graphed(double, record=recorder)):
        for _ in range(3):
            graphed(torch.zeros(1, 1, 256, 256))
    assert len(recorder.recorded) == 1  # not of 64 times as many pixels


@pytest.mark.parametrize(
    ("recorder", "said"),
    [
        (
            ReplayingRecorder(error=RuntimeError("operation not permitted\nwhen capturing")),
            "can't be recorded here (operation",
        ),
        (ReplayingRecorder(error=torch.OutOfMemoryError("no memory")), "can't be recorded here (no memory)"),
        (ReplayingRecorder(wrong=1.0), "gives another result here"),
        (ReplayingRecorder(wrong=float("nan")), "gives another result here"),
    ],
)
def test_what_fails_or_errs_is_told_of_and_left(
    recorder: ReplayingRecorder, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    graphed, values = Graphed(double, record=recorder), torch.ones(1, 3, 4, 4)
    for _ in range(4):
        assert torch.equal(graphed(values), 2 * values)
    assert said in capsys.readouterr().err
    assert recorder.replayed <= 1


def test_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDM_VAE_GRAPHS", "off")
    recorder = ReplayingRecorder()
    graphed = Graphed(double, record=recorder)
    for _ in range(4):
        graphed(torch.ones(1, 3, 4, 4))
    assert not recorder.recorded
