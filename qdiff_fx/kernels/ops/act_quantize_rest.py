"""The residual code of a 16-bit input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qdiff_fx.kernels import checks
from qdiff_fx.kernels.activations import Activation
from qdiff_fx.kernels.ops import act_quantize
from qdiff_fx.kernels.registration import register

SCHEMA = (
    "(Tensor x, int activation, float scale, int zero_point, int low, int high, float rest_scale, int rest_zero_point) "
    "-> Tensor"
)


def reference(
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
    act_quantize.check(op, x, activation, torch.uint8)
    checks.quantizer(op, torch.uint8, scale, zero_point, low, high)
    checks.quantizer(op, torch.uint8, rest_scale, rest_zero_point, 0, 255)

    codes = act_quantize.reference(x, activation, torch.uint8, scale, zero_point, low, high)
    values = act_quantize.reference(x, activation, torch.float32, 1.0, 0, 0, 0)
    rest = values - (codes.float() - zero_point) * scale
    return act_quantize.reference(rest, Activation.NONE, torch.uint8, rest_scale, rest_zero_point, 0, 255)


def fake(x: Tensor, activation: int, *args: Any) -> Tensor:
    """Laid out like what it is made of."""
    return act_quantize.like_activated("act_quantize_rest", x, activation, torch.uint8)


register("act_quantize_rest", SCHEMA, reference, fake)
