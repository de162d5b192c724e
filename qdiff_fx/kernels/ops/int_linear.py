"""The integer linear layer, and GEGLU, which is two of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qdiff_fx.kernels import checks
from qdiff_fx.kernels.activations import Activation
from qdiff_fx.kernels.epilogue import OUTPUT, finish
from qdiff_fx.kernels.ops.pack_weight import check_packed
from qdiff_fx.kernels.registration import register

SCHEMA = (
    "(Tensor codes, float scale, int zero_point, Tensor[] weights, Tensor[] weight_scales, Tensor[] weight_sums, "
    f"int out_features, Tensor? bias, Tensor? residual, int activation, {OUTPUT}) -> Tensor"
)


def reference(
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
    size = check(codes, out_features, len(weights), activation, out_dtype)
    if not len(weights) == len(weight_scales) == len(weight_sums):
        raise checks.error(op, "every weight needs its scales and its sums")
    checks.codes(op, codes, scale, zero_point)
    for packed in zip(weights, weight_scales, weight_sums):
        check_packed(op, packed, (out_features, codes.shape[-1]))
    checks.vector(op, "the bias", bias, out_features * len(weights))
    checks.residual(op, residual, size)
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
    return finish(total, residual, activation, out_dtype, out_scale, out_zero_point, out_low, out_high)


def check(codes: Tensor, out_features: int, weights: int, activation: int, out_dtype: torch.dtype) -> tuple[int, ...]:
    """The shape (..., O) of what `int_linear` makes of such codes; raises KernelError where it does not."""
    op = "int_linear"
    if codes.dtype != torch.uint8 or codes.dim() < 1 or codes.shape[-1] == 0:
        raise checks.error(op, f"codes must be uint8 (..., I), not {codes.dtype} {tuple(codes.shape)}")
    checks.within(op, "out_features", out_features, 1, checks.MOST_ELEMENTS)
    checks.activation(op, activation, tuple(Activation))
    if weights != (2 if activation == Activation.GEGLU else 1):
        raise checks.error(op, f"takes one weight, and of geglu two, not {weights}")
    checks.out_dtype(op, out_dtype)
    size = (*codes.shape[:-1], out_features)
    checks.sizes(op, size)
    return size


def fake(codes: Tensor, *args: Any) -> Tensor:
    """Rows side by side."""
    weights, out_features, activation, out_dtype = args[2], args[5], *args[8:10]
    size = check(codes, out_features, len(weights), activation, out_dtype)
    return codes.new_empty(size, dtype=out_dtype)


register("int_linear", SCHEMA, reference, fake)
