"""torch's q/dq operators as ONNX's QuantizeLinear and DequantizeLinear (opset 21)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir
import torch
from onnxscript import opset21 as op

qd = torch.ops.quantized_decomposed

OPSET = 21
"""The first with codes of four bits."""
_KINDS: dict[torch.dtype, Any] = {torch.uint8: np.uint8, torch.int8: np.int8}


def translations() -> dict[Any, Callable[..., Any]]:
    """For ``torch.onnx.export(custom_translation_table=...)``."""
    return {
        qd.quantize_per_tensor.default: _quantize,
        qd.quantize_per_tensor.tensor: _quantize_by_tensors,
        qd.dequantize_per_tensor.default: _dequantize,
        qd.dequantize_per_tensor.tensor: _dequantize_by_tensors,
        qd.dequantize_per_channel.default: _dequantize_channels,
    }


def _quantize(x: Any, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: Any) -> Any:
    kind = _kind(dtype)
    codes = op.QuantizeLinear(x, _number(scale, np.float32), _number(zero_point, kind))
    return _clipped(codes, quant_min, quant_max, kind)


def _quantize_by_tensors(x: Any, scale: Any, zero_point: Any, quant_min: int, quant_max: int, dtype: Any) -> Any:
    kind = _kind(dtype)
    codes = op.QuantizeLinear(x, _scalar(scale), _as_codes(zero_point, kind))
    return _clipped(codes, quant_min, quant_max, kind)


def _dequantize(
    x: Any, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: Any, *, out_dtype: Any = None
) -> Any:
    return op.DequantizeLinear(x, _number(scale, np.float32), _number(zero_point, _kind(dtype)))


def _dequantize_by_tensors(
    x: Any, scale: Any, zero_point: Any, quant_min: int, quant_max: int, dtype: Any, *, out_dtype: Any = None
) -> Any:
    return op.DequantizeLinear(x, _scalar(scale), _as_codes(zero_point, _kind(dtype)))


def _dequantize_channels(
    x: Any,
    scales: Any,
    zero_points: Any,
    axis: int,
    quant_min: int,
    quant_max: int,
    dtype: Any,
    *,
    out_dtype: Any = None,
) -> Any:
    """Of weights, whose zero-points are zero."""
    return op.DequantizeLinear(x, scales, axis=axis)


def _clipped(codes: Any, low: int, high: int, kind: Any) -> Any:
    """Codes of fewer values than their type has; ONNX's quantizers know the type alone."""
    limits = np.iinfo(kind)
    if (low, high) == (limits.min, limits.max):
        return codes
    return op.Clip(codes, _number(low, kind), _number(high, kind))


def _as_codes(zero_point: Any, kind: Any) -> Any:
    return op.Cast(_scalar(zero_point), to=int(onnx_ir.DataType.from_numpy(np.dtype(kind))))


def _scalar(gathered: Any) -> Any:
    """One number without dimensions. By `Reshape`: what `Squeeze` leaves has a rank that not every runtime can tell."""
    nothing: Any = onnx_ir.tensor(np.array([], dtype=np.int64))
    shape: Any = op.Constant(value=nothing)
    return op.Reshape(gathered, shape)


def _number(value: float, kind: Any) -> Any:
    constant: Any = onnx_ir.tensor(np.array(value, dtype=kind))  # the exporter takes it, whatever annotations say
    return op.Constant(value=constant)


def _kind(dtype: Any) -> Any:
    """Of numpy. The exporter hands on a type of torch or ONNX's number for it."""
    if isinstance(dtype, torch.dtype):
        return _KINDS[dtype]
    return onnx_ir.DataType(int(dtype)).numpy().type
