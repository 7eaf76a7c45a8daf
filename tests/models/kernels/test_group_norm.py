"""Group norm and SiLU by the Triton kernels: interpreted on the CPU, compiled for GPUs that needn't be there."""

from __future__ import annotations

import copy
import importlib.metadata
import os
import re
import subprocess
import sys
import traceback

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_vae.models.blocks import speed_up_blocks
from ldm_vae.models.kernels import fused
from tests.tiny import tiny_autoencoder

pytest.importorskip("triton", minversion="3.6")

SHAPES = [  # images, channels, height, width, groups
    (2, 8, 5, 7, 8),  # 1 channel a group
    (1, 24, 9, 3, 8),  # 3
    (2, 128, 17, 19, 32),  # 4; several parts, the last one short
    (1, 30, 1, 1, 6),  # 5, one position
    (3, 56, 4, 11, 4),  # 14
    (1, 512, 6, 5, 32),  # 16
    (1, 2048, 2, 3, 32),  # 64; wider than a tile
]
WAYS = [  # of which shapes, in which type, with SiLU or without
    *((shape, torch.float32, True) for shape in SHAPES),
    *((shape, torch.bfloat16, True) for shape in SHAPES[::3]),
    (SHAPES[2], torch.float32, False),
]
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 5e-3}


def leaves(shape: tuple[int, ...], dtype: torch.dtype, *, offset: float) -> list[Tensor]:
    """Return a map, weight, bias and upstream gradient, as the kernels take them."""
    images, channels, *sides = shape
    generator = torch.Generator().manual_seed(channels)
    hidden = torch.randn(images, channels, *sides, generator=generator) * 2 + offset
    upstream = torch.randn(images, channels, *sides, generator=generator)
    weight, bias = torch.randn(2, channels, generator=generator) + 1
    maps = [value.to(dtype, memory_format=torch.channels_last) for value in (hidden, upstream)]
    return [maps[0].requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), maps[1]]


def results(
    values: list[Tensor], groups: int, *, silu: bool, dtype: torch.dtype, kernels: bool, eps: float = 1e-6
) -> list[Tensor]:
    """Return the norm's result and all gradients."""
    hidden, weight, bias, upstream = (value.detach().to(dtype) for value in values)
    inputs = [value.requires_grad_() for value in (hidden, weight, bias)]
    if kernels:
        inputs = [value.detach().requires_grad_() for value in values[:3]]
        output = fused.group_norm_silu(*inputs, groups, eps, silu)[0]
        upstream = values[3]
    else:
        output = F.group_norm(hidden, groups, weight, bias, eps)
        output = F.silu(output) if silu else output
    return [output, *torch.autograd.grad(output, inputs, upstream)]


def check_exactness() -> None:
    """Kernels and operators beside float64: the kernels are nearly as near as rounding the exact result is."""
    for shape, dtype, silu in WAYS:
        values, groups = leaves(shape[:4], dtype, offset=0.5), shape[4]
        exact = results(values, groups, silu=silu, dtype=torch.float64, kernels=False)
        ours = results(values, groups, silu=silu, dtype=dtype, kernels=True)
        for name, a, b in zip(("y", "hidden", "weight", "bias"), ours, exact, strict=True):
            error = (a.double() - b).norm() / b.norm()
            # Where a group has hardly any elements its gradient is a difference of like numbers.
            limit = TOLERANCES[dtype] * (50 if shape[2:4] == (1, 1) and name == "hidden" else 1)
            assert error < limit, (shape, dtype, silu, name, float(error))
        assert ours[0].dtype == ours[1].dtype == dtype
        assert ours[0].is_contiguous(memory_format=torch.channels_last)
        assert ours[2].dtype == torch.float32


def check_offsets() -> None:
    """A common offset under which float32's E[x²] - E[x]² has no digit left; so with first values that are far off."""
    for shape in ((2, 128, 17, 19), (1, 24, 9, 3)):
        values = leaves(shape, torch.float32, offset=1e4)
        flat = values[0].detach().reshape(shape[0], 8, -1)
        lost = flat.square().mean(2) - flat.mean(2).square()
        exact_variance = flat.double().var(2, unbiased=False)
        assert ((lost - exact_variance) / exact_variance).abs().max() > 0.5  # the formula that isn't used
        exact = results(values, 8, silu=True, dtype=torch.float64, kernels=False)
        ours = results(values, 8, silu=True, dtype=torch.float32, kernels=True)
        for a, b in zip(ours, exact, strict=True):
            assert (a.double() - b).norm() / b.norm() < 2e-3  # a float32 step at 10,000 is 0.001 of the values' std
        _, _, rstd = fused.group_norm_silu(*(value.detach() for value in values[:3]), 8, 1e-6, True)
        assert (rstd.double() * exact_variance.sqrt() - 1).abs().max() < 3e-4
    hidden = torch.randn(1, 128, 64, 64, generator=torch.Generator().manual_seed(0))
    hidden[:, :, 0] += 1e3  # the first row, about whose values those below are added up
    _, _, rstd = fused.group_norm_silu(hidden, *torch.ones(2, 128), 32, 1e-6, True)
    exact_variance = hidden.double().view(1, 32, -1).var(2, unbiased=False)
    assert (rstd.double() * exact_variance.sqrt() - 1).abs().max() < 1e-6


def check_biases() -> None:
    """What convolutions leave out is added: before the norm, and with a shortcut or without behind it."""
    for shape, dtype, silu in WAYS:
        hidden, weight, bias, shortcut = (value.detach() for value in leaves(shape[:4], dtype, offset=0.5))
        left_out = (weight.flip(0) * 3).to(dtype)
        whole = hidden.double() + left_out.double()[:, None, None]
        norm = F.group_norm(whole, shape[4], weight.double(), bias.double(), 1e-6)
        expected = [F.silu(norm) if silu else norm, whole + shortcut.double(), whole]
        found = [
            fused.group_norm_silu(hidden, weight, bias, shape[4], 1e-6, silu, left_out)[0],
            fused.add(hidden.clone(), left_out, shortcut),
            fused.add(hidden.clone(), left_out),
        ]
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == dtype
            assert (a.double() - b).norm() < TOLERANCES[dtype] * b.norm(), (shape, dtype, silu)
    with pytest.raises(AssertionError, match="no gradient"):
        fused.group_norm_silu(hidden.requires_grad_(), weight, bias, shape[4], 1e-6, True, left_out)


def check_comparison_draws_nothing() -> None:
    """Comparing kernels and operators leaves torch's random numbers alone, or first weights would depend on it."""
    before = torch.get_rng_state()
    assert fused.relative_error(torch.device("cpu"), torch.float32) < 1e-5
    assert torch.equal(torch.get_rng_state(), before)


def check_images_alone() -> None:
    """The bits of an image don't depend on those beside it, and layouts other than channels_last are taken."""
    hidden, weight, bias, upstream = leaves((3, 24, 19, 17), torch.float32, offset=0.0)
    whole = results([hidden, weight, bias, upstream], 8, silu=True, dtype=torch.float32, kernels=True)
    one = results([hidden[1:2], weight, bias, upstream[1:2]], 8, silu=True, dtype=torch.float32, kernels=True)
    assert torch.equal(whole[0][1:2], one[0])
    assert torch.equal(whole[1][1:2], one[1])
    plain = [value.detach().contiguous() for value in (hidden, weight, bias, upstream)]
    assert torch.equal(results(plain, 8, silu=True, dtype=torch.float32, kernels=True)[0], whole[0])
    tokens = [hidden.detach().flatten(2), weight, bias, upstream.flatten(2)]  # [B, C, L], as attention has it
    assert torch.equal(results(tokens, 8, silu=True, dtype=torch.float32, kernels=True)[0], whole[0].flatten(2))


def check_compiled() -> None:
    """torch.compile and torch's own checks of an operator take it as one."""
    values = leaves((2, 24, 5, 3), torch.float32, offset=0.0)
    arguments = (*values[:3], 8, 1e-6, True)
    torch.library.opcheck(fused.group_norm_silu, arguments)
    torch.library.opcheck(
        fused.group_norm_silu_backward,
        (values[3], *(value.detach() for value in values[:3]), torch.zeros(2, 8), torch.ones(2, 8), True),
    )

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return (fused.group_norm_silu(hidden, weight, bias, 8, 1e-6, True)[0] * values[3]).sum()

    eager = torch.autograd.grad(loss(*values[:3]), values[:3])
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(*values[:3]), values[:3]), eager, strict=True):
        assert torch.equal(a, b)


def check_blocks() -> None:
    """An autoencoder whose blocks take the kernels is the one without them, and needs its gradients as much."""
    plain = tiny_autoencoder(attention=[False, True]).train().to(memory_format=torch.channels_last)
    taken = copy.deepcopy(plain)
    speed_up_blocks(taken)
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = plain(images).sample
    expected.square().mean().backward()
    calls = []
    original = fused.group_norm
    fused.group_norm = lambda norm, hidden, **silu: calls.append(norm) or original(norm, hidden, **silu)
    fused._IN_USE["cpu"] = True
    with torch.no_grad():
        torch.testing.assert_close(taken(images).sample, expected, rtol=1e-4, atol=1e-5)
    found = taken(images).sample
    found.square().mean().backward()
    norms = [module for module in taken.modules() if isinstance(module, nn.GroupNorm)]
    assert len(calls) == 2 * len(norms)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for (name, a), (_, b) in zip(taken.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5, msg=name)


CHECKS = {
    check.__name__: check
    for check in (
        check_exactness,
        check_offsets,
        check_biases,
        check_comparison_draws_nothing,
        check_images_alone,
        check_compiled,
        check_blocks,
    )
}


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str]:
    """What became of each check in a process whose Triton interprets."""
    done = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import run_checks; run_checks()"],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return dict(line.split("\t", 1) for line in done.stdout.splitlines() if "\t" in line)


def run_checks() -> None:
    """Run all checks, and print what became of each."""
    for name, check in CHECKS.items():
        try:
            check()
            print(name, "passed", sep="\t")
        except Exception:
            print(name, traceback.format_exc().replace("\n", " | "), sep="\t")


@pytest.mark.parametrize("name", CHECKS)
def test_interpreted(interpreted: dict[str, str], name: str) -> None:
    assert interpreted[name] == "passed"


@pytest.mark.parametrize(("capability", "per_group", "rows"), [(80, 4, 32), (90, 4, 64), (90, 12, 8)])
def test_kernels_compile_for_gpus(capability: int, per_group: int, rows: int) -> None:
    """The interpreter takes what Triton's compiler doesn't: here all kernels are compiled, without a GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from ldm_vae.models.kernels import norm_kernels

    width = 1 << (per_group - 1).bit_length()
    constants = {
        "NUM_GROUPS": 32, "PER_GROUP": per_group, "GROUPS": 32, "WIDTH": width, "ROWS": rows, "TILES": 4, "PARTS": 32,
        "CHUNKS": 2, "SILU": True, "SHIFTED": True, "HAS_SHORTCUT": True, "CHANNELS": 32 * per_group, "BLOCK": 2048,
    }  # fmt: skip
    halves = {"hidden", "gradient", "shortcut", "output"}
    numbers = {"num_positions", "num_parts", "rows_of_part", "num_elements"}
    for kernel in (
        norm_kernels.statistics, norm_kernels.merge_statistics, norm_kernels.normalise, norm_kernels.add,
        norm_kernels.channel_sums, norm_kernels.merge_sums, norm_kernels.hidden_gradient,
    ):  # fmt: skip
        names = kernel.arg_names
        taken = {name: constants[name] for name in names if name in constants}
        kinds = dict.fromkeys(names, "*fp32") | dict.fromkeys(halves & set(names), "*bf16")
        kinds |= dict.fromkeys(numbers & set(names), "i32") | dict.fromkeys({"eps"} & set(names), "fp32")
        kinds |= dict.fromkeys(taken, "constexpr")
        whole = {name for name in names if kinds[name].startswith("*")} | {"num_elements"}  # multiples of 16
        aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in whole}
        source = ASTSource(fn=kernel, signature=kinds, constexprs=taken, attrs=aligned)
        built = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
        assert "ld.global" in built.asm["ptx"]
        if per_group == 4 and "hidden" in names:  # maps are read 16 bytes at once
            assert re.search(r"ld\.global\S*\.v4\.b32", built.asm["ptx"]), kernel.__name__


def test_nothing_changes_on_a_cpu() -> None:
    assert not fused.use_kernels(torch.device("cpu"))
    assert not fused.takes(torch.zeros(1, 4, 2, 2))


def test_kernels_that_fail_or_err_are_told_of_and_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    device = torch.device("cpu")  # where Triton has no driver, so that a launch fails
    monkeypatch.setattr(fused, "_expected", lambda device: True)
    monkeypatch.setattr(fused, "_IN_USE", {})
    assert not fused.use_kernels(device)
    assert "the group-norm kernels don't run here" in capsys.readouterr().err
    monkeypatch.setattr(fused, "_IN_USE", {})
    monkeypatch.setattr(fused, "relative_error", lambda device, dtype: float("nan"))
    assert not fused.use_kernels(device)
    assert "are off by nan here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("installed", "used"), [("3.6.0", True), ("3.10.1+git", True), ("4.0", True), ("3.5.1", False), (None, False)]
)
def test_older_triton_is_left(monkeypatch: pytest.MonkeyPatch, installed: str | None, used: bool) -> None:
    def version(name: str) -> str:
        if installed is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert fused._has_triton() == used


@pytest.mark.parametrize("word", ["off", "0"])
def test_switch(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert fused._expected(torch.device("cuda"))
    monkeypatch.setenv("LDM_VAE_KERNELS", word)
    assert not fused._expected(torch.device("cuda"))
