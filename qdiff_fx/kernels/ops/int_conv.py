"""The integer convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qdiff_fx.kernels import checks
from qdiff_fx.kernels.activations import ELEMENTWISE
from qdiff_fx.kernels.epilogue import OUTPUT, finish
from qdiff_fx.kernels.ops.pack_weight import check_packed
from qdiff_fx.kernels.registration import register

SCHEMA = (
    "(Tensor[] codes, float[] scales, int[] zero_points, Tensor[] weights, Tensor[] weight_scales, "
    "Tensor[] weight_sums, int out_channels, int[] kernel, int[] stride, int[] padding, int[] dilation, "
    f"int[] enlarge, Tensor? bias, Tensor? shift, Tensor? residual, int activation, {OUTPUT}) -> Tensor"
)


def reference(
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
    size = check(codes, out_channels, kernel, stride, padding, dilation, enlarge, activation, out_dtype)
    for x, scale, zero_point, packed in zip(codes, scales, zero_points, zip(weights, weight_scales, weight_sums)):
        checks.codes(op, x, scale, zero_point)
        check_packed(op, packed, (out_channels, x.shape[1], *kernel))
    checks.vector(op, "the bias", bias, out_channels)
    if shift is not None and (
        shift.dtype != torch.float32 or shift.dim() != 2 or shift.shape not in ((1, size[1]), (size[0], size[1]))
    ):
        raise checks.error(op, f"the shift must be float32 (N or 1, {out_channels}), not {tuple(shift.shape)}")
    checks.residual(op, residual, size)
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
    out = finish(total, residual, activation, out_dtype, out_scale, out_zero_point, out_low, out_high)
    return out.contiguous(memory_format=torch.channels_last)


def check(
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
    checks.out_dtype(op, out_dtype)
    size = (first.shape[0], out_channels, *checks.window(op, codes, kernel, stride, padding, dilation, enlarge))
    checks.sizes(op, size)
    return size


def fake(codes: Sequence[Tensor], *args: Any) -> Tensor:
    """Channels last, like the result."""
    batch, out_channels, height, width = check(codes, *args[5:11], *args[14:16])
    return codes[0].new_empty((batch, height, width, out_channels), dtype=args[15]).permute(0, 3, 1, 2)


register("int_conv", SCHEMA, reference, fake)
