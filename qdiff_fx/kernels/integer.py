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

from qdiff_fx.errors import KernelError
from qdiff_fx.kernels.accumulator import overflow


class Activation(IntEnum):
    """What a kernel applies before it writes; the numbers are those of `kernels.h`."""

    NONE = 0
    SILU = 1
    GELU = 2
    GELU_TANH = 3
    GEGLU = 4  # (..., 2 C) -> (..., C): the first half times the gelu of the second


CODES = (torch.uint8, torch.int8)


def pack_weight(codes: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """int8 codes (out, in, ...) of so many bits as the kernels read them, and their sums per output channel.

    Compiled kernels pack codes of up to 4 bits two to a byte (uint8). Without them the codes come back as they are,
    the sums unused. Sums that might exceed 32 bits are an error here, so that the layers need not look for them.
    """
    if not 2 <= bits <= 8:
        raise _error("pack_weight", f"weights have 2 to 8 bits, not {bits}")
    if codes.dtype != torch.int8 or not 2 <= codes.dim() <= 4 or codes.numel() == 0:
        raise _error("pack_weight", f"expected int8 codes (out, in, ...), not {codes.dtype} {tuple(codes.shape)}")
    if reason := overflow(codes, bits):
        raise _error("pack_weight", reason)
    # A copy: whoever packed may free the codes.
    return codes.flatten().clone(), codes.flatten(1).sum(1, dtype=torch.int32)


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
    total: Tensor | None = None
    for x, scale, zero_point, weight, weight_scale in zip(
        codes, scales, zero_points, weights, weight_scales, strict=True
    ):
        _check_codes("int_conv", x, scale, zero_point)
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
    _check_codes("int_linear", codes, scale, zero_point)
    centred = codes.double() - zero_point
    totals = [
        F.linear(centred, weight.view(out_features, codes.shape[-1]).double()) * (by[:out_features].double() * scale)
        for weight, by in zip(weights, weight_scales, strict=True)
    ]
    if bias is not None:
        totals = [total + part for total, part in zip(totals, bias.chunk(len(totals)), strict=True)]
    total = totals[0]
    if activation == Activation.GEGLU:
        total, activation = total * F.gelu(totals[1]), Activation.NONE
    return _finish(total, residual, activation, out_dtype, out_scale, out_zero_point, out_low, out_high)


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
    joined = torch.cat([part.float() for part in parts], 1)
    normed = F.group_norm(joined, groups, weight, bias, epsilon)
    return _finish(normed, None, activation, out_dtype, scale, zero_point, low, high)


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
    normed = F.layer_norm(x.float(), x.shape[-1:], weight, bias, epsilon)
    return _finish(normed, None, Activation.NONE, out_dtype, scale, zero_point, low, high)


def act_quantize(
    x: Tensor, activation: int, out_dtype: torch.dtype, scale: float, zero_point: int, low: int, high: int
) -> Tensor:
    """``quantize(act(x))``; GEGLU halves the last dim."""
    if activation == Activation.GEGLU:
        value, gate = x.float().chunk(2, -1)
        return _finish(value * F.gelu(gate), None, Activation.NONE, out_dtype, scale, zero_point, low, high)
    return _finish(x.float(), None, activation, out_dtype, scale, zero_point, low, high)


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


def _check_codes(op: str, codes: Tensor, scale: float, zero_point: int) -> None:
    if codes.dtype != torch.uint8:
        raise _error(op, f"codes must be uint8, not {codes.dtype}")
    if not (scale > 0 and math.isfinite(scale)):
        raise _error(op, f"a scale must be a positive finite number, not {scale}")
    if not 0 <= zero_point <= 255:
        raise _error(op, f"zero point {zero_point} is not in 0..255")


def _error(op: str, what: str) -> KernelError:
    return KernelError(what, where=op)
