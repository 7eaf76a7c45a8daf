"""Faster forwards for the blocks of diffusers' autoencoders: the same mathematics in fewer passes over memory."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ldm_vae.models.kernels import fused

NARROW_GROUP = 16  # groups of fewer channels are slow in torch's backward of group norm; see `_NarrowGroupNorm`
MIN_POSITIONS = {torch.float32: 1024, torch.bfloat16: 4096}  # from so many input pixels on `upsample` is faster


ADDED_IN_PLACE = {torch.bfloat16}  # types in which a CPU's convolution may add to a tensor; see `_adds_in_place`


def speed_up_blocks(network: nn.Module, *, overwrites: bool = False) -> None:
    """Give residual blocks, samplers and group norms the forwards below; names and weights stay as they are.

    Args:
        network: A network of diffusers, or a part of one.
        overwrites: Whether a residual block may write its result over its input, which nobody reads any more where
            blocks follow each other and nothing is differentiated.
    """
    for module in network.modules():
        if (
            isinstance(module, ResnetBlock2D)
            and module.output_scale_factor == 1
            and isinstance(module.nonlinearity, nn.SiLU)
        ):
            module.forward = functools.partial(residual_block, module, overwrites=overwrites)
        elif isinstance(module, nn.GroupNorm):
            module.forward = functools.partial(group_norm, module)  # type: ignore[method-assign]
        elif (
            isinstance(module, Upsample2D) and isinstance(module.conv, nn.Conv2d) and module.conv.kernel_size == (3, 3)
        ):
            module.forward = functools.partial(upsample, module)
        elif (
            isinstance(module, Downsample2D)
            and isinstance(module.conv, nn.Conv2d)
            and module.conv.bias is not None
            and module.norm is None
            and module.padding == 0
        ):
            module.forward = functools.partial(downsample, module)
    for half in network.modules():
        if (
            isinstance(half, (Encoder, Decoder))
            and isinstance(half.conv_norm_out, nn.GroupNorm)
            and isinstance(half.conv_act, nn.SiLU)
        ):
            _fuse_last_norm(half)


def residual_block(block: ResnetBlock2D, hidden: Tensor, temb: None = None, *, overwrites: bool = False) -> Tensor:
    """Run a ResnetBlock2D of diffusers that has no time embedding.

    The layout change before the shortcut and the division by 1 are left out. The sum is made in place, and where no
    gradient needs them the activations are too.

    Args:
        block: The block.
        hidden: [B, C, H, W].
        temb: Always None; diffusers' blocks pass it on.
        overwrites: Whether `hidden` may be overwritten.
    """
    if fused.takes_biases(hidden):
        return _with_biases_later(block, hidden)
    residual = block.conv1(norm_and_silu(block.norm1, hidden))
    residual = norm_and_silu(block.norm2, residual)
    shortcut = hidden if block.conv_shortcut is None else block.conv_shortcut(hidden)
    if overwrites and _adds_in_place(block.conv2, residual, shortcut):
        return _add_convolution(block.conv2, residual, shortcut)
    return block.conv2(residual).add_(shortcut)


def _with_biases_later(block: ResnetBlock2D, hidden: Tensor) -> Tensor:
    """Run a block whose convolutions leave their biases to the kernels behind them.

    On a GPU torch adds a bias in a pass of its own over the map, which takes a quarter of an encoder's time.
    """
    residual = unbiased(block.conv1, norm_and_silu(block.norm1, hidden))
    residual = fused.group_norm(block.norm2, residual, silu=True, offset=block.conv1.bias)
    residual = unbiased(block.conv2, residual)
    if block.conv_shortcut is None:
        return fused.add(residual, block.conv2.bias, hidden)
    return fused.add(residual, block.conv2.bias + block.conv_shortcut.bias, unbiased(block.conv_shortcut, hidden))


def unbiased(conv: nn.Conv2d, hidden: Tensor) -> Tensor:
    """Return a convolution without its bias."""
    return conv._conv_forward(hidden, conv.weight, None)


def _adds_in_place(conv: nn.Conv2d, hidden: Tensor, target: Tensor) -> bool:
    """Whether oneDNN adds a convolution to what is there while it writes it, which is a pass over memory less.

    Not in float32, where results are diffusers' bit for bit: some processors' kernels would add in another order.
    """
    return (
        hidden.device.type == "cpu"
        and hidden.dtype == conv.weight.dtype == target.dtype
        and hidden.dtype in ADDED_IN_PLACE
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        and target.is_contiguous(memory_format=torch.channels_last)
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _add_convolution(conv: nn.Conv2d, hidden: Tensor, target: Tensor) -> Tensor:
    """Return `target`, to which the convolution of `hidden` is added.

    The operator is torch's own, by which its compiler fuses sums into convolutions; Python has no other name for it.
    """
    added: Tensor = torch.ops.mkldnn._convolution_pointwise_.binary(
        target, hidden, conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups,
        "add", 1.0, None, [], None,
    )  # fmt: skip
    return added


def upsample(block: Upsample2D, hidden: Tensor, output_size: None = None) -> Tensor:
    """Run an Upsample2D of diffusers: nearest doubling, then a 3x3 convolution. [B, C, H, W] to [B, C, 2H, 2W].

    In training on CPUs, and on GPUs with kernels of ours, one transposed 4x4 convolution does both. An output takes 4
    products for each channel instead of 9, and a quarter of the memory is kept for the backward. The result is as
    exact, but not bit-equal.
    """
    if not (_is_folded_on_cpu(hidden) or fused.takes(hidden)):
        return type(block).forward(block, hidden)
    assert isinstance(block.conv, nn.Conv2d)
    weight = block.conv.weight.float().permute(1, 2, 3, 0)  # [in, 3, 3, out]
    weight = _doubled_taps(_doubled_taps(weight, dim=1), dim=2).permute(0, 3, 1, 2)  # [in, out, 4, 4]
    bias = block.conv.bias
    if bias is not None and fused.takes_biases(hidden):
        doubled = F.conv_transpose2d(hidden, weight.to(block.conv.weight.dtype), stride=2, padding=1)
        return fused.add(doubled, bias)
    return F.conv_transpose2d(hidden, weight.to(block.conv.weight.dtype), bias, stride=2, padding=1)


def downsample(block: Downsample2D, hidden: Tensor) -> Tensor:
    """Run a Downsample2D of diffusers that pads at the right and below. [B, C, H, W] to [B, C, H/2, W/2]."""
    if not fused.takes_biases(hidden):
        return type(block).forward(block, hidden)
    return fused.add(unbiased(block.conv, F.pad(hidden, (0, 1, 0, 1))), block.conv.bias)


def _is_folded_on_cpu(hidden: Tensor) -> bool:
    if hidden.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    positions = hidden.numel() // hidden.shape[1]
    return positions >= MIN_POSITIONS.get(hidden.dtype, positions + 1)


def _doubled_taps(weight: Tensor, *, dim: int) -> Tensor:
    """Return the 4 taps from an input pixel to outputs, where the pixel is doubled under a convolution of 3 taps."""
    first, second, third = weight.unbind(dim)
    return torch.stack([third, second + third, first + second, first], dim)


def norm_and_silu(norm: nn.GroupNorm, hidden: Tensor) -> Tensor:
    """Return SiLU of the group norm of [B, C, H, W], in one pass where there is a kernel for it."""
    if fused.takes(hidden):
        return fused.group_norm(norm, hidden, silu=True)
    return F.silu(group_norm(norm, hidden), inplace=not torch.is_grad_enabled())


def _fuse_last_norm(half: Any) -> None:
    """Let the norm before the last convolution do what the SiLU behind it does."""
    half.conv_norm_out.forward = functools.partial(norm_and_silu, half.conv_norm_out)
    half.conv_act.forward = _unchanged


def _unchanged(hidden: Tensor) -> Tensor:
    return hidden


def group_norm(norm: nn.GroupNorm, hidden: Tensor) -> Tensor:
    """Return the group norm of [B, C, H, W] (or [B, C, L]), with a faster backward where torch's is slow."""
    if fused.takes(hidden):
        return fused.group_norm(norm, hidden, silu=False)
    if (
        hidden.device.type == "cpu"
        and hidden.dtype == torch.bfloat16
        and hidden.ndim == 4
        and norm.num_channels < NARROW_GROUP * norm.num_groups
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    ):
        normalised: Tensor = _NarrowGroupNorm.apply(hidden, norm.weight, norm.bias, norm.num_groups, norm.eps)
        return normalised
    return F.group_norm(hidden, norm.num_groups, norm.weight, norm.bias, norm.eps)


class _NarrowGroupNorm(torch.autograd.Function):
    """Group norm with the backward of a batch norm that has each image's group statistics, plus a correction.

    torch's own backward in bf16 and channels_last on CPUs works through the channels of one group at a time, without
    vector instructions where they are few: for 128 channels in 32 groups it takes 5 times as long as this (seen with
    torch 2.14), and 13 % of a whole training step.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float) -> Tensor:
        """Normalise [B, C, H, W]; the statistics are float32."""
        num_images, channels, height, width = hidden.shape
        normalised, mean, rstd = torch.native_group_norm(
            hidden, weight, bias, num_images, channels, height * width, num_groups, eps
        )
        ctx.save_for_backward(hidden, weight, mean, rstd)
        return normalised

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return rstd·(γg - mean(γg) - x̂·mean(γg·x̂)), where x̂ = (x - mean)·rstd and means are over a group."""
        hidden, weight, group_mean, group_rstd = ctx.saved_tensors
        num_images, channels, height, width = hidden.shape
        num_groups = group_mean.shape[1]
        grad_hidden = torch.empty_like(hidden)
        grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(weight)

        def over_group(of_channels: Tensor) -> Tensor:
            return of_channels.view(num_groups, -1).mean(1).repeat_interleave(channels // num_groups)

        for image in range(num_images):
            one = slice(image, image + 1)
            mean = group_mean[image].repeat_interleave(channels // num_groups)
            rstd = group_rstd[image].repeat_interleave(channels // num_groups)
            variance = rstd**-2
            grad_held, grad_weight_image, grad_bias_image = torch.ops.aten.native_batch_norm_backward(
                gradient[one], hidden[one], weight, mean, variance, None, None, False, 0.0, [True, True, True]
            )
            grad_weight += grad_weight_image
            grad_bias += grad_bias_image
            # Not by F.batch_norm, which refuses an eps of 0 in some releases of torch (2.11).
            correction = torch.batch_norm(
                hidden[one],
                -rstd * over_group(weight * grad_weight_image) / (height * width),
                -rstd * over_group(weight * grad_bias_image) / (height * width),
                mean,
                variance,
                False,
                0.0,
                0.0,
                False,
            )
            torch.add(grad_held, correction, out=grad_hidden[one])
        return grad_hidden, grad_weight, grad_bias, None, None
