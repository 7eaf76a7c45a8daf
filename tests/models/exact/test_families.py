"""Strips of every model class: any architecture, size, number of rows, budget and number of processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderTiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ldm_vae.models.exact import disable_exact_tiling, enable_exact_tiling, plan_of
from ldm_vae.models.exact.networks import make_program
from ldm_vae.models.families import FAMILIES, family_of
from ldm_vae.models.families.family import Family
from ldm_vae.models.inference import InferenceAutoencoder
from tests.models.exact.strips import gradient_picture, in_strips, least_gib, lively, relative_error
from tests.tiny import tiny_autoencoder, tiny_family

Draw = Callable[[Any], Any]


def deep_compression(
    *,
    widths: tuple[int, ...] = (8, 8, 16),
    attention: int = 1,
    first_layers: int = 1,
    scales: tuple[int, ...] = (5,),
    shuffled: bool = True,
    norm: str = "rms_norm",
    shortcuts: bool = True,
    seed: int = 0,
) -> Family:
    """Return a random AutoencoderDC whose deepest `attention` levels have attention."""
    torch.manual_seed(seed)
    levels = len(widths)
    blocks = ("ResBlock",) * (levels - attention) + ("EfficientViTBlock",) * attention
    half = {"block_out_channels": widths, "layers_per_block": (first_layers,) + (1,) * (levels - 1),
            "block_types": blocks, "qkv_multiscales": (scales,) * levels}  # fmt: skip
    fields = {f"{name}_{field}": value for name in ("encoder", "decoder") for field, value in half.items()}
    model = AutoencoderDC(
        latent_channels=4, attention_head_dim=4, decoder_norm_types=norm, **fields,
        upsample_block_type="pixel_shuffle" if shuffled else "interpolate",
        downsample_block_type="pixel_unshuffle" if shuffled else "conv",
        encoder_out_shortcut=shortcuts, decoder_in_shortcut=shortcuts,
    )  # fmt: skip
    return family_of(model.eval())


def tiny(*, levels: int = 3, width: int = 8, blocks: int = 1, act: str = "relu", seed: int = 0) -> Family:
    """Return a random AutoencoderTiny."""
    torch.manual_seed(seed)
    deep, widths = (blocks,) * (levels - 1), (width,) * levels
    model = AutoencoderTiny(
        encoder_block_out_channels=widths, decoder_block_out_channels=widths, act_fn=act,
        num_encoder_blocks=(1, *deep), num_decoder_blocks=(*deep, 1),
    )  # fmt: skip
    return family_of(model.eval())


BUILDS: dict[str, Callable[[], Family]] = {
    "kl": lambda: family_of(tiny_autoencoder(mid_block_add_attention=False)),
    "kl, attention": lambda: family_of(tiny_autoencoder(attention=[True, False])),
    "flux2": lambda: tiny_family(family="flux2", decoder_block_out_channels=[4, 8], mid_block_add_attention=False),
    "flux2, attention": lambda: tiny_family(family="flux2", decoder_block_out_channels=[4, 8]),
    "vq": lambda: tiny_family(family="vq", codebook_size=16, mid_block_add_attention=False),
    "vq, attention": lambda: tiny_family(family="vq", codebook_size=16),
    "tiny": tiny,
    "tiny, another activation": lambda: tiny(act="silu", blocks=2),
    "dc": lambda: deep_compression(attention=0),
    "dc, attention": deep_compression,
    "dc, attention of three scales": lambda: deep_compression(attention=2, scales=(3, 5)),
    "dc, shuffled borders": lambda: deep_compression(first_layers=0),
    "dc, strides and interpolation": lambda: deep_compression(first_layers=0, shuffled=False),
    "dc, batch norms and no shortcuts at the borders": lambda: deep_compression(norm="batch_norm", shortcuts=False),
}
every_family = pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS.keys())


def side_of(family: Family, side: int) -> int:
    """Sides that AutoencoderDC's squares don't fill are refused by diffusers too."""
    return side // family.spatial_factor * family.spatial_factor if family.name == "dc" else side


def test_every_class_is_here() -> None:
    assert {build().class_name() for build in BUILDS.values()} == FAMILIES.keys()


@every_family
def test_strips_give_the_whole_result(build: Callable[[], Family]) -> None:
    """At odd rows, on the disk, with norms that do something, and a gradient that no strip's own statistics have."""
    family = build()
    model: Any = lively(family.model)
    image = gradient_picture(height=side_of(family, 45), width=side_of(family, 31))
    with torch.no_grad():
        hidden = model.encoder(image)
        latents = 3 * hidden[:, : model.config.latent_channels]
        decoded = model.decoder(latents)
        for rows, tier in ((1, "device"), (2, "disk"), (3, "device"), (7, "host")):
            assert relative_error(in_strips(model.encoder, image, rows=rows, tier=tier), hidden) < 1e-5
            assert relative_error(in_strips(model.decoder, latents, rows=rows, tier=tier), decoded) < 1e-5


def drawn_family(draw: Draw) -> Family:
    """Return any architecture of any class."""
    name, seed = draw(st.sampled_from(sorted(family.name for family in FAMILIES.values()))), draw(st.integers(0, 99))
    levels = draw(st.integers(1, 3))
    widths = tuple(draw(st.sampled_from([4, 8, 12])) for _ in range(levels))
    if name == "tiny":
        blocks, act = draw(st.integers(1, 2)), draw(st.sampled_from(["relu", "silu"]))
        return tiny(levels=levels, width=widths[0], blocks=blocks, act=act, seed=seed)
    if name == "dc":
        return deep_compression(
            widths=tuple(4 * 2**level for level in range(levels)),
            attention=draw(st.integers(0, levels - 1)),
            first_layers=draw(st.integers(int(levels == 1), 1)),
            scales=draw(st.sampled_from([(), (3,), (5,), (3, 5)])),
            shuffled=draw(st.booleans()),
            norm=draw(st.sampled_from(["rms_norm", "batch_norm"])),
            shortcuts=draw(st.booleans()),
            seed=seed,
        )
    attention = [level for level in range(levels) if draw(st.booleans())]
    family = tiny_family(
        family=name,
        block_out_channels=list(widths),
        attention_levels=attention,
        mid_block_add_attention=draw(st.booleans()),
        layers_per_block=draw(st.integers(1, 2)),
    )
    return family


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_architecture_size_and_budget(data: st.DataObject) -> None:
    """Whatever the budget, from the smallest that an error advises to the whole, the result is the whole one."""
    family = drawn_family(data.draw)
    model: Any = lively(family.model)
    low = 2 * family.spatial_factor
    height, width = (side_of(family, data.draw(st.integers(low, 48))) for _ in range(2))
    image = gradient_picture(height=height, width=width, seed=3)
    share = data.draw(st.floats(0, 1))
    with torch.no_grad():
        hidden = model.encoder(image)
        latents = 3 * hidden[:, : model.config.latent_channels]
        for half, taken, expected in (("encoder", image, hidden), ("decoder", latents, model.decoder(latents))):
            sides = {"height": taken.shape[2], "width": taken.shape[3]}
            least = least_gib(model, half=half, **sides)
            enable_exact_tiling(model, memory_gib=1)
            whole = plan_of(model, half=half, **sides).whole_bytes / 2**30
            enable_exact_tiling(model, memory_gib=least + share * max(whole - least, 0))
            assert relative_error(getattr(model, half)(taken), expected) < 1e-5


@every_family
def test_bf16_is_no_further_from_float32_than_the_whole_bf16(build: Callable[[], Family]) -> None:
    sides = {"height": 56, "width": 40}
    image = gradient_picture(**sides)
    exact, rounded = (InferenceAutoencoder(family_of(lively(build().model)), bf16=bf16) for bf16 in (False, True))
    latents = exact.encode(image)[0]
    factor = exact.family.spatial_factor
    right = exact.family.encode(image), exact.decode(latents)

    def errors() -> list[float]:
        found = rounded.family.encode(image), rounded.decode(latents)
        return [float((one - other).square().mean().sqrt()) for one, other in zip(found, right, strict=True)]

    with torch.no_grad():
        whole = errors()
        model = rounded.family.model
        decoded = {name: side // factor for name, side in sides.items()}
        least = max(least_gib(model, half="encoder", **sides), least_gib(model, half="decoder", **decoded))
        enable_exact_tiling(model, memory_gib=least)
        assert plan_of(model, half="encoder", **sides).layout is not None
        strips = errors()
    for of_strips, of_whole in zip(strips, whole, strict=True):
        assert 0 < of_strips <= 1.1 * of_whole


def test_sizes_that_the_class_refuses_are_one_line() -> None:
    with pytest.raises(ValueError, match="a map of 23 x 22 can't be cut into squares of 2; take other sides"):
        make_program(deep_compression().model.encoder).sizes(46, 44)


def test_batch_norms_in_training_are_refused() -> None:
    model: Any = deep_compression(norm="batch_norm").model.train()
    enable_exact_tiling(model, memory_gib=1e-3)
    with pytest.raises(ValueError, match="exact tiling needs the autoencoder in eval mode"), torch.no_grad():
        model.decode(torch.randn(1, 4, 64, 64))


def test_distances_to_all_codes_are_never_there_at_once() -> None:
    """VQModel looks its codes up within the budget too; codes, indices and loss are those of the whole latent."""
    model: Any = tiny_family(family="vq", codebook_size=64).model
    latents = torch.randn(2, model.config.latent_channels, 24, 20, generator=torch.Generator().manual_seed(0))
    sizes: list[int] = []
    with torch.no_grad():
        codes, loss, (_, _, indices) = model.quantize(latents)
        enable_exact_tiling(model, memory_gib=1e-4)
        whole = model.quantize.forward.whole
        part_of = lambda part: sizes.append(part.shape[2]) or whole(part)  # noqa: E731
        model.quantize.forward = dataclasses.replace(model.quantize.forward, whole=part_of)
        again, same_loss, (_, _, same_indices) = model.quantize(latents)
    assert again.equal(codes)
    assert same_indices.equal(indices)
    torch.testing.assert_close(same_loss, loss)
    assert len(sizes) > 2
    assert max(sizes) * 20 * 64 * 4 < 1e-4 * 2**30
    disable_exact_tiling(model)
    assert "forward" not in vars(model.quantize)
