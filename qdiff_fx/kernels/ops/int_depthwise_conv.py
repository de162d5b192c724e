"""The integer convolution of every channel by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qdiff_fx.kernels import checks
from qdiff_fx.kernels.activations import ELEMENTWISE
from qdiff_fx.kernels.epilogue import OUTPUT, finish
from qdiff_fx.kernels.registration import register

SCHEMA = (
    "(Tensor codes, float scale, int zero_point, Tensor weight, Tensor weight_scale, int[] stride, int[] padding, "
    f"int[] dilation, Tensor? bias, Tensor? residual, int activation, {OUTPUT}) -> Tensor"
)


def reference(
    codes: Tensor,
    scale: float,
    zero_point: int,
    weight: Tensor,
    weight_scale: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
    out_dtype: torch.dtype,
    out_scale: float,
    out_zero_point: int,
    out_low: int,
    out_high: int,
) -> Tensor:
    """``quantize(act(conv(codes) + bias + residual))``, where no channel meets another.

    Args:
        codes: uint8 (N, C, H, W).
        scale, zero_point: of the codes.
        weight: int8 codes (h, w, C).
        weight_scale: float32 (C,).
        stride, dilation: (h, w).
        padding: top, bottom, left, right, of value zero.
        bias: float32 (C,).
        residual: floating, like the result.
        activation: an `Activation` other than GEGLU.
        out_dtype: floating, or uint8 / int8 for codes with the quantizer that follows.

    Returns:
        (N, C, H', W'), channels last.
    """
    op = "int_depthwise_conv"
    checks.plain(op, (codes, weight, weight_scale, bias, residual))
    size = check(codes, weight, stride, padding, dilation, activation, out_dtype)
    checks.codes(op, codes, scale, zero_point)
    checks.weight_scales(op, weight_scale, size[1])
    checks.vector(op, "the bias", bias, size[1])
    checks.residual(op, residual, size)
    checks.quantizer(op, out_dtype, out_scale, out_zero_point, out_low, out_high)

    top, bottom, left, right = padding
    centred = F.pad(codes.double() - zero_point, (left, right, top, bottom))
    kernels = weight.double().permute(2, 0, 1).unsqueeze(1)
    total = F.conv2d(centred, kernels, None, tuple(stride), 0, tuple(dilation), size[1])
    total = total * (weight_scale.double() * scale)[:, None, None]
    if bias is not None:
        total = total + bias[:, None, None]
    out = finish(total, residual, activation, out_dtype, out_scale, out_zero_point, out_low, out_high)
    return out.contiguous(memory_format=torch.channels_last)


def check(
    codes: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: int,
    out_dtype: torch.dtype,
) -> tuple[int, int, int, int]:
    """The shape (N, C, H', W') of what it makes of such an image; raises KernelError where it does not."""
    op = "int_depthwise_conv"
    if codes.dtype != torch.uint8 or codes.dim() != 4 or 0 in codes.shape[1:]:
        raise checks.error(op, f"codes must be uint8 (N, C, H, W), not {codes.dtype} {tuple(codes.shape)}")
    if weight.dtype != torch.int8 or weight.dim() != 3 or weight.shape[2] != codes.shape[1]:
        found = f"{weight.dtype} {tuple(weight.shape)}"
        raise checks.error(op, f"the weight must be int8 (h, w, {codes.shape[1]}), not {found}")
    if not weight.is_contiguous():
        raise checks.error(op, "the weight must be contiguous")
    checks.activation(op, activation, ELEMENTWISE)
    checks.out_dtype(op, out_dtype)
    made = checks.window(op, [codes], weight.shape[:2], stride, padding, dilation, (1, 1))
    size = (codes.shape[0], codes.shape[1], *made)
    checks.sizes(op, size)
    return size


def fake(codes: Tensor, *args: Any) -> Tensor:
    """Channels last, like the result."""
    batch, channels, height, width = check(codes, args[2], *args[4:7], *args[9:11])
    return codes.new_empty((batch, height, width, channels), dtype=args[10]).permute(0, 3, 1, 2)


register("int_depthwise_conv", SCHEMA, reference, fake)
