"""Float64 where there is none."""

import re
from pathlib import Path

import pytest
import torch

import ldm_vae
from ldm_vae.metrics.sums import Sums
from ldm_vae.system import float64
from ldm_vae.system.float64 import float64_device, float64_tensor, float64_zeros, in_float64
from ldm_vae.training.meter import Meter

PACKAGE = Path(ldm_vae.__file__).parent
MAKES_FLOAT64 = re.compile(r"torch\.(float64|double)\b|\.double\(\)|DoubleTensor")
EXCEPT = {
    "system/float64.py",
    "latents/mapping.py",
    "models/exact/statistics.py",
    "models/exact/linear_attention.py",
}
"""The helper; the types that a file on the CPU may hold; and sums that stay on their device, in float32 on MPS."""


def test_float64_is_made_in_one_place_alone() -> None:
    found = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if MAKES_FLOAT64.search(path.read_text(encoding="utf-8"))
    }
    assert found <= EXCEPT, "make it with ldm_vae.system.float64, which knows the devices that have none"


def test_where_a_device_has_none_it_is_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert float64_device("mps") == torch.device("cpu")
    assert float64_device("cuda:1") == torch.device("cuda:1")
    monkeypatch.setattr(float64, "_WITHOUT_FLOAT64", ("meta",))  # a device that every machine has
    assert float64_zeros(2, 3, device="meta").device.type == "cpu"
    assert float64_tensor([1.0], device="meta").device.type == "cpu"
    assert Sums({"a": 2}, device="meta")["a"].device.type == "cpu"
    state = Meter(["a"], checked=["b"], device=torch.device("meta")).state()
    assert {values.device.type for values in state.values()} == {"cpu"}


def test_values_are_kept() -> None:
    values = torch.tensor([1.0, 1e30])
    assert in_float64(values).dtype == torch.float64
    assert torch.equal(in_float64(values).float(), values)
