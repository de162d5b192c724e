"""The integer layers and what surrounds them, in plain torch: what the compiled kernels are measured against.

All of them take ordinary tensors; the compiled ones are fast on channels-last images and write such.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum

import torch
import torch.nn.functional as F
from torch import Tensor

from qdiff_fx.kernels import checks
from qdiff_fx.kernels.accumulator import overflow


class Activation(IntEnum):
    """What a kernel applies before it writes; the numbers are those of `kernels.h`."""

    NONE = 0
    SILU = 1
    GELU = 2
    GELU_TANH = 3
    GEGLU = 4  # (..., 2 C) -> (..., C): the first half times the gelu of the second


CODES = checks.CODES
ELEMENTWISE = (Activation.NONE, Activation.SILU, Activation.GELU, Activation.GELU_TANH)
OF_NORMS = (Activation.NONE, Activation.SILU)


def pack_weight(codes: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """int8 codes (out, in, ...) of so many bits as the kernels read them, and their sums per output channel.

    Compiled kernels pack codes of up to 4 bits two to a byte (uint8). Without them the codes come back as they are,
    the sums unused. Sums that might exceed 32 bits are an error here, so that the layers need not look for them.
    """
    check_pack(codes, bits)
    limit = 1 << (bits - 1)
    if int(codes.min()) < -limit or int(codes.max()) >= limit:
        raise checks.error("pack_weight", f"codes of {bits} bits are {-limit} to {limit - 1}, these are not")
    if reason := overflow(codes, bits):
        raise checks.error("pack_weight", reason)
    # A copy: whoever packed may free the codes.
    return codes.flatten().clone(), codes.flatten(1).sum(1, dtype=torch.int32)


def check_pack(codes: Tensor, bits: int) -> None:
    """Raise KernelError unless `pack_weight` takes such a tensor."""
    op = "pack_weight"
    checks.plain(op, [codes])
    if not 2 <= bits <= 8:
        raise checks.error(op, f"weights have 2 to 8 bits, not {bits}")
    if codes.dtype != torch.int8 or not 2 <= codes.dim() <= 4 or codes.numel() == 0:
        raise checks.error(op, f"expected int8 codes (out, in, ...), not {codes.dtype} {tuple(codes.shape)}")


def int_conv(
    codes: Sequence[Tensor],
    scales: Sequence[float],
    zero_points: Sequence[int],
    weights: Sequence[Tensor],
    weight_scales: Sequence[Tensor],
    weight_sums: Sequence[Tensor],
    out_channels: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    enlarge: Sequence[int],
    bias: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    activation: int,
    out_dtype: torch.dtype,
    out_scale: float,
    out_zero_point: int,
    out_low: int,
    out_high: int,
) -> Tensor:
    """``quantize(act(sum_i conv_i(codes_i) + bias + shift + residual))``: a convolution of one or more sources.

    Args:
        codes: uint8 (N, C_i, H, W), one per source; a split shortcut has several.
        scales, zero_points: of the codes.
        weights, weight_sums: from `pack_weight`.
        weight_scales: float32, one per output channel (padded to the length of the sums).
        out_channels: O.
        kernel, stride, dilation: (h, w).
        padding: top, bottom, left, right, of value zero.
        enlarge: whole factors (h, w) of nearest-neighbour upsampling before the convolution.
        bias: float32 (O,).
        shift: float32 (N or 1, O), added to every pixel: the time embedding.
        residual: floating, like the result.
        activation: an `Activation` other than GEGLU, which only `int_linear` has.
        out_dtype: floating, or uint8 / int8 for codes with the quantizer that follows.

    Returns:
        (N, O, H', W'), channels last.
    """
    op, count = "int_conv", len(codes)
    checks.plain(op, (*codes, *weights, *weight_scales, *weight_sums, bias, shift, residual))
    lengths = [len(each) for each in (scales, zero_points, weights, weight_scales, weight_sums)]
    if count == 0 or lengths != [count] * 5:
        raise checks.error(op, f"every one of {count} sources needs codes, scale, zero point and weight, not {lengths}")
    size = check_conv(codes, out_channels, kernel, stride, padding, dilation, enlarge, activation, out_dtype)
    for x, scale, zero_point, packed in zip(codes, scales, zero_points, zip(weights, weight_scales, weight_sums)):
        checks.codes(op, x, scale, zero_point)
        _check_packed(op, packed, (out_channels, x.shape[1], *kernel))
    checks.vector(op, "the bias", bias, out_channels)
    if shift is not None and (
        shift.dtype != torch.float32 or shift.dim() != 2 or shift.shape not in ((1, size[1]), (size[0], size[1]))
    ):
        raise checks.error(op, f"the shift must be float32 (N or 1, {out_channels}), not {tuple(shift.shape)}")
    _check_residual(op, residual, size)
    checks.quantizer(op, out_dtype, out_scale, out_zero_point, out_low, out_high)

    total: Tensor | None = None
    for x, scale, zero_point, weight, weight_scale in zip(codes, scales, zero_points, weights, weight_scales):
        centred = x.float() - zero_point
        if tuple(enlarge) != (1, 1):
            centred = centred.repeat_interleave(enlarge[0], 2).repeat_interleave(enlarge[1], 3)
        top, bottom, left, right = padding
        centred = F.pad(centred, (left, right, top, bottom))
        values = weight.view(out_channels, x.shape[1], *kernel).float()
        part = F.conv2d(centred.double(), values.double(), None, tuple(stride), 0, tuple(dilation))
        part = part * (weight_scale[:out_channels].double() * scale)[:, None, None]
        total = part if total is None else total + part
    assert total is not None
    if bias is not None:
        total = total + bias[:, None, None]
    if shift is not None:
        total = total + shift[:, :, None, None]
    out = _finish(total, residual, activation, out_dtype, out_scale, out_zero_point, out_low, out_high)
    return out.contiguous(memory_format=torch.channels_last)


def check_conv(
    codes: Sequence[Tensor],
    out_channels: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    enlarge: Sequence[int],
    activation: int,
    out_dtype: torch.dtype,
) -> tuple[int, int, int, int]:
    """The shape (N, O, H', W') of what `int_conv` makes of images like these; raises KernelError where it does not."""
    op = "int_conv"
    if not codes:
        raise checks.error(op, "every source needs codes, and there is none")
    first = codes[0]
    for x in codes:
        if x.dtype != torch.uint8 or x.dim() != 4 or x.shape[1] == 0 or 0 in x.shape[2:]:
            raise checks.error(op, f"codes must be uint8 (N, C, H, W), not {x.dtype} {tuple(x.shape)}")
        if (x.shape[0], *x.shape[2:]) != (first.shape[0], *first.shape[2:]):
            shapes = f"{tuple(first.shape)} and {tuple(x.shape)}"
            raise checks.error(op, f"sources {shapes} differ in more than channels")
    checks.within(op, "out_channels", out_channels, 1, checks.MOST_ELEMENTS)
    checks.activation(op, activation, ELEMENTWISE)
    _check_out_dtype(op, out_dtype)
    size = (first.shape[0], out_channels, *checks.window(op, codes, kernel, stride, padding, dilation, enlarge))
    checks.sizes(op, size)
    return size


def int_linear(
    codes: Tensor,
    scale: float,
    zero_point: int,
    weights: Sequence[Tensor],
    weight_scales: Sequence[Tensor],
    weight_sums: Sequence[Tensor],
    out_features: int,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
    out_dtype: torch.dtype,
    out_scale: float,
    out_zero_point: int,
    out_low: int,
    out_high: int,
) -> Tensor:
    """The linear layer (..., I) -> (..., O) of `int_conv`'s kind.

    For GEGLU there are two weights, of the values and of their gates, and the bias holds that of both.
    """
    op = "int_linear"
    checks.plain(op, (codes, *weights, *weight_scales, *weight_sums, bias, residual))
    size = check_linear(codes, out_features, len(weights), activation, out_dtype)
    if not len(weights) == len(weight_scales) == len(weight_sums):
        raise checks.error(op, "every weight needs its scales and its sums")
    checks.codes(op, codes, scale, zero_point)
    for packed in zip(weights, weight_scales, weight_sums):
        _check_packed(op, packed, (out_features, codes.shape[-1]))
    checks.vector(op, "the bias", bias, out_features * len(weights))
    _check_residual(op, residual, size)
    if residual is not None and activation == Activation.GEGLU:
        raise checks.error(op, "geglu adds no residual")
    checks.quantizer(op, out_dtype, out_scale, out_zero_point, out_low, out_high)

    centred = codes.double() - zero_point
    totals = [
        F.linear(centred, weight.view(out_features, codes.shape[-1]).double()) * (by[:out_features].double() * scale)
        for weight, by in zip(weights, weight_scales)
    ]
    if bias is not None:
        totals = [total + part for total, part in zip(totals, bias.chunk(len(totals)))]
    total = totals[0]
    if activation == Activation.GEGLU:
        total, activation = total * F.gelu(totals[1]), Activation.NONE
    return _finish(total, residual, activation, out_dtype, out_scale, out_zero_point, out_low, out_high)


def check_linear(
    codes: Tensor, out_features: int, weights: int, activation: int, out_dtype: torch.dtype
) -> tuple[int, ...]:
    """The shape (..., O) of what `int_linear` makes of such codes; raises KernelError where it does not."""
    op = "int_linear"
    if codes.dtype != torch.uint8 or codes.dim() < 1 or codes.shape[-1] == 0:
        raise checks.error(op, f"codes must be uint8 (..., I), not {codes.dtype} {tuple(codes.shape)}")
    checks.within(op, "out_features", out_features, 1, checks.MOST_ELEMENTS)
    checks.activation(op, activation, tuple(Activation))
    if weights != (2 if activation == Activation.GEGLU else 1):
        raise checks.error(op, f"takes one weight, and of geglu two, not {weights}")
    _check_out_dtype(op, out_dtype)
    size = (*codes.shape[:-1], out_features)
    checks.sizes(op, size)
    return size


def group_norm_act(
    parts: Sequence[Tensor],
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    epsilon: float,
    activation: int,
    out_dtype: torch.dtype,
    scale: float,
    zero_point: int,
    low: int,
    high: int,
) -> Tensor:
    """``quantize(act(group_norm(cat(parts, 1))))``; parts are floating (N, C_i, ...)."""
    op = "group_norm_act"
    checks.plain(op, (*parts, weight, bias))
    check_group_norm(parts, groups, activation, out_dtype)
    channels = sum(part.shape[1] for part in parts)
    checks.vector(op, "the weight", weight, channels)
    checks.vector(op, "the bias", bias, channels)
    checks.epsilon(op, epsilon)
    checks.quantizer(op, out_dtype, scale, zero_point, low, high)

    joined = torch.cat([part.float() for part in parts], 1)
    # Not that of nn.functional, which refuses groups of one value.
    normed = torch.group_norm(joined, groups, weight, bias, epsilon) if joined.numel() else joined
    return _finish(normed, None, activation, out_dtype, scale, zero_point, low, high)


def check_group_norm(parts: Sequence[Tensor], groups: int, activation: int, out_dtype: torch.dtype) -> None:
    """Raise KernelError unless `group_norm_act` takes such parts."""
    op = "group_norm_act"
    if not 1 <= len(parts) <= checks.MOST_PARTS:
        raise checks.error(op, f"expected 1 to {checks.MOST_PARTS} parts, not {len(parts)}")
    first = parts[0]
    for part in parts:
        checks.floating(op, "a part", part)
        if part.dim() < 2 or part.shape[1] == 0:
            raise checks.error(op, f"parts must be (N, C, ...), not {tuple(part.shape)}")
        if (part.shape[0], *part.shape[2:]) != (first.shape[0], *first.shape[2:]):
            shapes = f"{tuple(first.shape)} and {tuple(part.shape)}"
            raise checks.error(op, f"parts {shapes} differ in more than channels")
    channels = sum(part.shape[1] for part in parts)
    if groups < 1 or channels % groups:
        raise checks.error(op, f"{channels} channels do not make {groups} groups")
    checks.sizes(op, (first.shape[0], channels, *first.shape[2:]))
    checks.activation(op, activation, OF_NORMS)
    _check_out_dtype(op, out_dtype)


def layer_norm_act(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    epsilon: float,
    out_dtype: torch.dtype,
    scale: float,
    zero_point: int,
    low: int,
    high: int,
) -> Tensor:
    """``quantize(layer_norm(x))`` over the last dim of (..., C)."""
    op = "layer_norm_act"
    checks.plain(op, (x, weight, bias))
    check_layer_norm(x, out_dtype)
    checks.vector(op, "the weight", weight, x.shape[-1])
    checks.vector(op, "the bias", bias, x.shape[-1])
    checks.epsilon(op, epsilon)
    checks.quantizer(op, out_dtype, scale, zero_point, low, high)

    normed = F.layer_norm(x.float(), x.shape[-1:], weight, bias, epsilon)
    return _finish(normed, None, Activation.NONE, out_dtype, scale, zero_point, low, high)


def check_layer_norm(x: Tensor, out_dtype: torch.dtype) -> None:
    """Raise KernelError unless `layer_norm_act` takes such a tensor."""
    op = "layer_norm_act"
    checks.floating(op, "its input", x)
    if x.dim() < 1 or x.shape[-1] == 0:
        raise checks.error(op, f"expected (..., C), not {tuple(x.shape)}")
    _check_out_dtype(op, out_dtype)


def act_quantize(
    x: Tensor, activation: int, out_dtype: torch.dtype, scale: float, zero_point: int, low: int, high: int
) -> Tensor:
    """``quantize(act(x))``; GEGLU halves the last dim."""
    checks.plain("act_quantize", [x])
    check_act_quantize("act_quantize", x, activation, out_dtype)
    checks.quantizer("act_quantize", out_dtype, scale, zero_point, low, high)
    if activation == Activation.GEGLU:
        value, gate = x.float().chunk(2, -1)
        return _finish(value * F.gelu(gate), None, Activation.NONE, out_dtype, scale, zero_point, low, high)
    return _finish(x.float(), None, activation, out_dtype, scale, zero_point, low, high)


def check_act_quantize(op: str, x: Tensor, activation: int, out_dtype: torch.dtype) -> None:
    """Raise KernelError unless `act_quantize` takes such a tensor."""
    checks.floating(op, "its input", x)
    checks.activation(op, activation, tuple(Activation))
    if activation == Activation.GEGLU and (x.dim() < 1 or x.shape[-1] % 2):
        raise checks.error(op, f"geglu expects (..., 2 C), not {tuple(x.shape)}")
    _check_out_dtype(op, out_dtype)


def act_quantize_rest(
    x: Tensor,
    activation: int,
    scale: float,
    zero_point: int,
    low: int,
    high: int,
    rest_scale: float,
    rest_zero_point: int,
) -> Tensor:
    """The second of two codes: what `act_quantize` to uint8 with the first scale leaves over, in 0..255."""
    op = "act_quantize_rest"
    checks.plain(op, [x])
    check_act_quantize(op, x, activation, torch.uint8)
    checks.quantizer(op, torch.uint8, scale, zero_point, low, high)
    checks.quantizer(op, torch.uint8, rest_scale, rest_zero_point, 0, 255)

    codes = act_quantize(x, activation, torch.uint8, scale, zero_point, low, high)
    values = act_quantize(x, activation, torch.float32, 1.0, 0, 0, 0)
    rest = values - (codes.float() - zero_point) * scale
    return act_quantize(rest, Activation.NONE, torch.uint8, rest_scale, rest_zero_point, 0, 255)


def _finish(
    x: Tensor,
    residual: Tensor | None,
    activation: int,
    out_dtype: torch.dtype,
    scale: float,
    zero_point: int,
    low: int,
    high: int,
) -> Tensor:
    if residual is not None:
        x = x + residual
    if activation == Activation.SILU:
        x = F.silu(x)
    elif activation in (Activation.GELU, Activation.GELU_TANH):
        x = F.gelu(x, approximate="tanh" if activation == Activation.GELU_TANH else "none")
    if out_dtype not in CODES:
        return x.to(out_dtype)
    # As torch.ao defines it: a product with the inverse, ties to even.
    return torch.round(x.float() * (1.0 / scale)).add(zero_point).clamp(low, high).nan_to_num(low).to(out_dtype)


def _check_out_dtype(op: str, dtype: torch.dtype) -> None:
    """The part of `checks.quantizer` that needs no numbers."""
    if dtype not in CODES:
        checks.quantizer(op, dtype, 1.0, 0, 0, 0)


def _check_packed(op: str, packed: tuple[Tensor, Tensor, Tensor], shape: Sequence[int]) -> None:
    """A weight (out, in, ...) from this file's `pack_weight`, its scales and its sums."""
    weight, scale, sums = packed
    if weight.dtype != torch.int8 or weight.numel() != math.prod(shape) or not weight.is_contiguous():
        wanted = " x ".join(str(size) for size in shape)
        raise checks.error(op, f"the packed weight has {weight.numel()} bytes, not those of {wanted}")
    checks.scales_and_sums(op, scale, sums, shape[0])


def _check_residual(op: str, residual: Tensor | None, size: Sequence[int]) -> None:
    if residual is None:
        return
    checks.floating(op, "the residual", residual)
    if tuple(residual.shape) != tuple(size):
        raise checks.error(op, f"the residual {tuple(residual.shape)} is not like the result {tuple(size)}")
