"""An activation and a quantizer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qdiff_fx.kernels import checks
from qdiff_fx.kernels.activations import Activation
from qdiff_fx.kernels.epilogue import QUANTIZER, finish
from qdiff_fx.kernels.registration import register

SCHEMA = f"(Tensor x, int activation, {QUANTIZER}) -> Tensor"


def reference(
    x: Tensor, activation: int, out_dtype: torch.dtype, scale: float, zero_point: int, low: int, high: int
) -> Tensor:
    """``quantize(act(x))``; GEGLU halves the last dim."""
    checks.plain("act_quantize", [x])
    check("act_quantize", x, activation, out_dtype)
    checks.quantizer("act_quantize", out_dtype, scale, zero_point, low, high)
    if activation == Activation.GEGLU:
        value, gate = x.float().chunk(2, -1)
        return finish(value * F.gelu(gate), None, Activation.NONE, out_dtype, scale, zero_point, low, high)
    return finish(x.float(), None, activation, out_dtype, scale, zero_point, low, high)


def check(op: str, x: Tensor, activation: int, out_dtype: torch.dtype) -> None:
    """Raise KernelError unless `act_quantize` takes such a tensor."""
    checks.floating(op, "its input", x)
    checks.activation(op, activation, tuple(Activation))
    if activation == Activation.GEGLU and (x.dim() < 1 or x.shape[-1] % 2):
        raise checks.error(op, f"geglu expects (..., 2 C), not {tuple(x.shape)}")
    checks.out_dtype(op, out_dtype)


def fake(x: Tensor, activation: int, out_dtype: torch.dtype, *args: Any) -> Tensor:
    """Laid out like what it is made of."""
    return like_activated("act_quantize", x, activation, out_dtype)


def like_activated(op: str, x: Tensor, activation: int, out_dtype: torch.dtype) -> Tensor:
    """The uninitialised result of such a tensor; raises KernelError where it has none."""
    check(op, x, activation, out_dtype)
    if activation == Activation.GEGLU:
        return x.new_empty((*x.shape[:-1], x.shape[-1] // 2), dtype=out_dtype)
    return torch.empty_like(x, dtype=out_dtype)


register("act_quantize", SCHEMA, reference, fake)
