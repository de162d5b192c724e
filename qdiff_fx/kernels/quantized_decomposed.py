"""The operators that q/dq graphs are written in: torch's own ``quantized_decomposed``, whoever has registered them.

The namespace is empty until somebody defines it: torch.ao does, as far as a build of torch still has it. Where nobody
does, importing this defines those that our graphs use, under the same names and with the same arithmetic, so that
saved folders mean the same everywhere.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from qdiff_fx.kernels import checks

NAMESPACE = "quantized_decomposed"
_QUANTIZER = "int quant_min, int quant_max, ScalarType dtype"
_DEQUANTIZER = f"{_QUANTIZER}, *, ScalarType? out_dtype=None"
_library: torch.library.Library | None = None  # the registrations live as long as this object


def register() -> None:
    """Make the operators known, unless they are."""
    if hasattr(torch.ops.quantized_decomposed, "quantize_per_tensor"):
        return
    try:
        importlib.import_module("torch.ao.quantization.fx._decomposed")
    except ImportError:
        define(NAMESPACE)


def define(namespace: str) -> None:
    """Define the operators in a namespace that does not have them."""
    global _library
    _library = torch.library.Library(namespace, "FRAGMENT")
    for schema, implementation, fake in (
        (
            f"quantize_per_tensor(Tensor input, float scale, int zero_point, {_QUANTIZER}) -> Tensor",
            _quantize,
            _fake_quantize,
        ),
        (
            f"quantize_per_tensor.tensor(Tensor input, Tensor scale, Tensor zero_point, {_QUANTIZER}) -> Tensor",
            _quantize_by_tensors,
            _fake_quantize,
        ),
        (
            f"dequantize_per_tensor(Tensor input, float scale, int zero_point, {_DEQUANTIZER}) -> Tensor",
            _dequantize,
            _fake_dequantize,
        ),
        (
            f"dequantize_per_tensor.tensor(Tensor input, Tensor scale, Tensor zero_point, {_DEQUANTIZER}) -> Tensor",
            _dequantize,
            _fake_dequantize,
        ),
        (
            "dequantize_per_channel(Tensor input, Tensor scales, Tensor? zero_points, int axis, "
            f"{_DEQUANTIZER}) -> Tensor",
            _dequantize_per_channel,
            _fake_dequantize_per_channel,
        ),
    ):
        name = schema.partition("(")[0]
        _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(name, implementation, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{namespace}::{name}", fake, lib=_library)


def _quantize(x: Tensor, scale: float, zero_point: int, low: int, high: int, dtype: torch.dtype) -> Tensor:
    """``clamp(round(x / scale) + zero_point)``, by the reciprocal, as torch has it."""
    op = "quantize_per_tensor"
    checks.plain(op, [x])
    checks.positive(op, "the scale", scale)
    if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        raise checks.error(op, f"the dtype of codes must be of whole numbers, not {dtype}")
    bounds = torch.iinfo(dtype)
    if not bounds.min <= low <= high <= bounds.max:
        raise checks.error(op, f"codes from {low} to {high} do not fit {dtype}")
    return torch.clamp(torch.round(x.to(torch.float32) * (1.0 / scale)) + zero_point, low, high).to(dtype)


def _quantize_by_tensors(
    x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, dtype: torch.dtype
) -> Tensor:
    return _quantize(x, scale.item(), int(zero_point.item()), low, high, dtype)


def _dequantize(
    codes: Tensor,
    scale: float | Tensor,
    zero_point: int | Tensor,
    low: int,
    high: int,
    dtype: torch.dtype,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    return (codes.to(out_dtype or torch.float32) - zero_point) * scale


def _dequantize_per_channel(
    codes: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    axis: int,
    low: int,
    high: int,
    dtype: torch.dtype,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    shape = [-1 if dim == axis % codes.dim() else 1 for dim in range(codes.dim())]
    centred = codes if zero_points is None else codes - zero_points.view(shape)
    return (centred * scales.view(shape)).to(out_dtype or torch.float32)


def _fake_quantize(x: Tensor, scale: object, zero_point: object, low: int, high: int, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(x, dtype=dtype)


def _fake_dequantize(
    codes: Tensor,
    scale: object,
    zero_point: object,
    low: int,
    high: int,
    dtype: torch.dtype,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    return torch.empty_like(codes, dtype=out_dtype or torch.float32)


def _fake_dequantize_per_channel(
    codes: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    axis: int,
    low: int,
    high: int,
    dtype: torch.dtype,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    return torch.empty_like(codes, dtype=out_dtype or torch.float32)


register()
