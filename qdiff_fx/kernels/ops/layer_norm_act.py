"""Layer norm and a quantizer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qdiff_fx.kernels import checks
from qdiff_fx.kernels.activations import Activation
from qdiff_fx.kernels.epilogue import QUANTIZER, finish
from qdiff_fx.kernels.registration import register

SCHEMA = f"(Tensor x, Tensor? weight, Tensor? bias, float epsilon, {QUANTIZER}) -> Tensor"


def reference(
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
    check(x, out_dtype)
    checks.vector(op, "the weight", weight, x.shape[-1])
    checks.vector(op, "the bias", bias, x.shape[-1])
    checks.epsilon(op, epsilon)
    checks.quantizer(op, out_dtype, scale, zero_point, low, high)

    normed = F.layer_norm(x.float(), x.shape[-1:], weight, bias, epsilon)
    return finish(normed, None, Activation.NONE, out_dtype, scale, zero_point, low, high)


def check(x: Tensor, out_dtype: torch.dtype) -> None:
    """Raise KernelError unless `layer_norm_act` takes such a tensor."""
    op = "layer_norm_act"
    checks.floating(op, "its input", x)
    if x.dim() < 1 or x.shape[-1] == 0:
        raise checks.error(op, f"expected (..., C), not {tuple(x.shape)}")
    checks.out_dtype(op, out_dtype)


def fake(x: Tensor, *args: Any) -> Tensor:
    """Rows side by side."""
    check(x, args[3])
    return x.new_empty(x.shape, dtype=args[3])


register("layer_norm_act", SCHEMA, reference, fake)
