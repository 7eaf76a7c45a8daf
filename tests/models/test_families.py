"""Every family is held to the same promises; a new one is a line in `FAMILIES`."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderDC, VQModel
from torch import Tensor

from ldm_vae.config.names import CheckpointingLevel
from ldm_vae.models import families
from ldm_vae.models.checkpointing import checkpoint_activations
from ldm_vae.models.families import family_of
from ldm_vae.models.families.family import DiffusersModel, Family
from ldm_vae.models.fingerprint import fingerprint
from ldm_vae.models.inference import InferenceAutoencoder
from ldm_vae.models.trainable import TrainableAutoencoder
from tests.tiny import random_images, tiny_family


def dc_with_shuffled_borders(*, upsample: str) -> Family:
    """An f2 model as SANA's f64 ones: its first level has no blocks."""
    torch.manual_seed(0)
    half = {"block_out_channels": (8, 8, 16), "layers_per_block": (0, 1, 1), "block_types": ("ResBlock",) * 3,
            "qkv_multiscales": ((), (), ())}  # fmt: skip
    fields = {f"{name}_{field}": value for name in ("encoder", "decoder") for field, value in half.items()}
    return family_of(
        AutoencoderDC(latent_channels=4, attention_head_dim=4, upsample_block_type=upsample, **fields).eval()
    )


FAMILIES: dict[str, Callable[[], Family]] = {
    "kl without quant_conv": lambda: tiny_family(use_quant_conv=False, mid_block_add_attention=False),
    "kl with attention": lambda: tiny_family(attention_levels=[1]),
    "kl of 16 channels, f4": lambda: tiny_family(latent_channels=16, block_out_channels=[8, 8, 16]),
    "kl of grey images": lambda: tiny_family(in_channels=1),
    "vq": lambda: tiny_family(family="vq", codebook_size=16),
    "vq of rounded channels": lambda: tiny_family(family="vq", bottleneck="fsq", fsq_levels=[4, 3, 3]),
    "tiny": lambda: tiny_family(family="tiny", block_out_channels=[8, 8]),
    "dc with attention": lambda: tiny_family(family="dc", block_out_channels=[8, 8, 16], attention_levels=[2]),
    "dc that ends in a pixel shuffle": lambda: dc_with_shuffled_borders(upsample="pixel_shuffle"),
    "dc that ends after an interpolation": lambda: dc_with_shuffled_borders(upsample="interpolate"),
    "flux2 with a narrow decoder": lambda: tiny_family(family="flux2", decoder_block_out_channels=[4, 8]),
}

every_family = pytest.mark.parametrize("build", FAMILIES.values(), ids=FAMILIES.keys())
one_of_each_class = pytest.mark.parametrize(  # compiling takes seconds
    "build", {name.split()[0]: build for name, build in reversed(FAMILIES.items())}.values()
)


def images_for(family: Family) -> Tensor:
    return random_images(family.in_channels)


def noise_for(family: Family) -> Tensor:
    side = 32 // family.spatial_factor
    return torch.randn(2, family.latent_channels, side, side, generator=torch.Generator().manual_seed(1))


def own_sample(model: DiffusersModel, images: Tensor, noise: Tensor) -> Tensor:
    """Return what the class itself makes of images: the posterior's sample, or the latent where there is no noise."""
    encoded = model.encode(images)
    if "latent_dist" in encoded:
        return encoded.latent_dist.mean + encoded.latent_dist.std * noise
    if isinstance(model, VQModel):
        return model.quantize(encoded.latents)[0]
    return encoded[0]


def trainable(family: Family, *, decoder_only: bool = False) -> TrainableAutoencoder:
    return TrainableAutoencoder(family, decoder_only=decoder_only, learn_logvar=False, logvar_init=0.0)


def encoder_parameters(family: Family) -> list[Tensor]:
    return [parameter for module in family.encoder_side for parameter in module.parameters()]


def ramp(images: Tensor) -> Tensor:
    return torch.linspace(-1, 1, images[0].numel()).view_as(images[0])


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6 * scale, msg=name)


def test_every_family_is_held_to_this() -> None:
    assert {build().class_name() for build in FAMILIES.values()} == families.FAMILIES.keys()


@every_family
def test_factor_and_channels_are_those_of_its_tensors(build: Callable[[], Family]) -> None:
    family = build()
    latent = family.encode_latent(images_for(family))
    assert latent.z.shape == noise_for(family).shape
    assert family.encode(images_for(family)).shape[1] == family.bottleneck.hidden_channels(family.latent_channels)
    assert family.decode(latent.z).shape == (2, family.out_channels, 32, 32)


@every_family
@torch.no_grad()
def test_its_pieces_give_what_the_class_gives(build: Callable[[], Family]) -> None:
    family = build()
    images, noise = images_for(family), noise_for(family)
    z = own_sample(family.model, images, noise)
    torch.testing.assert_close(family.encode_latent(images, noise).z, z)
    own = family.model.decode(z).sample
    assert own.std() > 0
    torch.testing.assert_close(family.head(family.decode_features(z)), own)
    torch.testing.assert_close(family.decode(z), own)
    mean = own_sample(family.model, images, torch.zeros_like(noise))
    torch.testing.assert_close(family.encode_moments(images)[0], mean)
    torch.testing.assert_close(family.reconstruct(images).images, family.model.decode(mean).sample)


@every_family
def test_a_backward_cut_at_y_gives_plain_gradients(build: Callable[[], Family]) -> None:
    """At the last layer's weight from y's gradient and the layer's input, and everywhere by one backward."""
    family = build().train()
    plain = copy.deepcopy(family).model
    images, noise = images_for(family), noise_for(family)
    reconstruction = plain.decode(own_sample(plain, images, noise)).sample
    weights = [copy.deepcopy(family).last_layer.weight, family.last_layer.weight]
    loss = (reconstruction * ramp(reconstruction)).sum()
    loss.backward()
    expected = gradients(plain)

    output = trainable(family)(images, noise)
    y = output.reconstruction.detach().requires_grad_()
    (grad_y,) = torch.autograd.grad((y * ramp(y)).sum(), y)
    layer = family.last_layer
    at_last_layer = family.last_layer_gradient(output.features, grad_y)
    torch.autograd.backward([output.reconstruction], [grad_y])
    found = gradients(family.model)
    assert torch.equal(*weights)
    name = next(name for name, parameter in family.model.named_parameters() if parameter is layer.weight)
    scale = float(expected[name].abs().max())
    torch.testing.assert_close(at_last_layer, expected[name], rtol=1e-4, atol=1e-4 * scale)
    assert_same_gradients(found, expected)


@every_family
def test_the_encoder_in_pieces_is_the_encoder_and_gives_the_gradient_at_its_last_layer(
    build: Callable[[], Family],
) -> None:
    family = build()
    hidden, features = family.encode(images_for(family)), family.encode_features(images_for(family))
    torch.testing.assert_close(family.encode_head(features), hidden, rtol=1e-5, atol=1e-6)
    (expected,) = torch.autograd.grad((hidden * ramp(hidden)).sum(), family.hidden_layer.weight)
    found = family.hidden_layer_gradient(features.detach(), ramp(hidden).expand_as(hidden))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@every_family
def test_decoder_only_leaves_every_latent_as_it_is(build: Callable[[], Family]) -> None:
    family = build()
    images, noise = images_for(family), noise_for(family)
    before, decoded = family.encode_latent(images), family.decode(noise)
    network = trainable(family, decoder_only=True)
    assert not any(parameter.requires_grad for parameter in encoder_parameters(family))  # for optimizer, EMA and DDP
    frozen = {id(parameter) for parameter in encoder_parameters(family)}
    network(images, noise).reconstruction.square().mean().backward()
    moved = [parameter for parameter in family.model.parameters() if parameter.grad is not None]
    assert {id(parameter) for parameter in moved}.isdisjoint(frozen)
    assert len(moved) + len(frozen) == len(list(family.model.parameters()))
    torch.optim.SGD(moved, lr=0.1).step()
    after = family.encode_latent(images)
    assert torch.equal(after.z, before.z)
    for name, stored in before.stored.items():
        assert torch.equal(after.stored[name], stored)
    assert not torch.allclose(family.decode(noise), decoded)


@every_family
@pytest.mark.parametrize("level", ["blocks", "full"])
def test_checkpointing_gives_the_same_gradients(build: Callable[[], Family], level: CheckpointingLevel) -> None:
    found = []
    for used in ("none", level):
        family = build().train()
        network = trainable(family)
        checkpoint_activations(family, used)
        saved: list[int] = []

        def keep(tensor: Tensor, saved: list[int] = saved) -> Tensor:
            saved.append(tensor.numel() if tensor.shape[:1] == (2,) else 0)  # activations of the two images
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = network(images_for(family), noise_for(family))
        output.reconstruction.square().sum().backward()
        found.append((gradients(family.model), sum(saved)))
    assert_same_gradients(found[1][0], found[0][0])
    assert found[1][1] < 0.7 * found[0][1]  # what is stored for the backward


@every_family
def test_bf16_is_near_float32_and_not_it(build: Callable[[], Family]) -> None:
    family = build()
    images, noise = images_for(family), noise_for(family)
    mean, decoded = family.encode_moments(images)[0], family.decode(noise)
    fast = InferenceAutoencoder(copy.deepcopy(family), bf16=True)
    pairs = [(fast.encode(images)[0], mean), (fast.decode(noise), decoded)]
    for rounded, exact in pairs if family.codebook_size is None else pairs[1:]:  # a code is the same or quite another
        assert rounded.dtype == torch.float32
        assert 0 < (rounded - exact).norm() / exact.norm() < 0.03
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = trainable(family)(images, noise)
    assert output.latent.z.dtype == output.reconstruction.dtype == torch.float32


@one_of_each_class
def test_compiled_it_gives_the_same(build: Callable[[], Family], monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced whole, without a break; what inductor makes of it is tested by a run."""
    family = build().train()
    images, noise = images_for(family), noise_for(family)
    network = trainable(family)
    expected = network(images, noise)
    compile_function, compiled = torch.compile, []

    def traced(function: Callable[..., Tensor], **_: object) -> Callable[..., Tensor]:
        compiled.append(function)
        return compile_function(function, backend="eager", fullgraph=True)

    monkeypatch.setattr(torch, "compile", traced)
    network.compile_networks()
    output = network(images, noise)
    assert len(compiled) == 2
    torch.testing.assert_close(output.reconstruction, expected.reconstruction, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.latent.z, expected.latent.z, rtol=1e-4, atol=1e-5)


@every_family
@torch.no_grad()
def test_fingerprints_tell_weights_and_halves_apart(build: Callable[[], Family]) -> None:
    first = fingerprint(build())
    assert fingerprint(build().to(memory_format=torch.channels_last)) == first
    family = build()
    in_encoder = {id(parameter) for parameter in encoder_parameters(family)}
    for name, parameter in family.model.named_parameters():
        kept = parameter.clone()
        parameter.view(-1)[0] += 1e-3
        changed = fingerprint(family)
        assert changed.whole != first.whole, name
        assert (changed.encoder != first.encoder) == (id(parameter) in in_encoder), name
        parameter.copy_(kept)
    assert fingerprint(family) == first


@every_family
def test_other_fields_keep_the_weights(build: Callable[[], Family]) -> None:
    family = build()
    other = family.with_fields({"scaling_factor": 0.5})
    if "scaling_factor" not in family.model.config:
        channels = family.latent_channels * family.patch_size**2
        other.set_statistics(mean=torch.arange(channels).float(), variance=torch.full((channels,), 4.0))
    latents = noise_for(family)
    assert not torch.allclose(other.normalisation.normalise(latents), family.normalisation.normalise(latents))
    torch.testing.assert_close(other.normalisation.restore(other.normalisation.normalise(latents)), latents)
    assert fingerprint(other).encoder == fingerprint(family).encoder
    assert fingerprint(other).whole != fingerprint(family).whole
    torch.testing.assert_close(other.decode(noise_for(family)), family.decode(noise_for(family)))
