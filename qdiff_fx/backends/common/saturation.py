"""Whether int8 kernels of torch lose products on this machine: measured, by the largest ones they can meet.

Libraries choose their instructions by processor, version and environment. Multiplying tells for certain.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

onednn, quantized = torch.ops.onednn, torch.ops.quantized

LARGEST, CODES = (127, -128), 255
CHANNELS = 32


@cache
def onednn_saturates() -> bool:
    """Whether oneDNN's u8·s8 convolutions or linears differ from the exact result; asked once per process."""
    return any(not _exact(value, product(value)) for value in LARGEST for product in (_onednn_conv, _onednn_linear))


@cache
def x86_engine_saturates() -> bool:
    """The same of torch's ``x86`` engine, which has to be the current one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that quantized tensors are deprecated
        return any(not _exact(value, product(value)) for value in LARGEST for product in (_x86_conv, _x86_linear))


def _exact(weight: int, sums: Tensor) -> bool:
    """Whether all sums of CHANNELS products are right, up to the step of 8-bit outputs."""
    exact = CODES * weight * CHANNELS
    return bool(((sums - exact).abs() < abs(exact) / 64).all())


def _onednn_conv(value: int) -> Tensor:
    codes, weight = _codes(CHANNELS, 8, 8), _weight(value, 1, 1)
    geometry = ([1, 1], [0, 0], [1, 1], 1)
    packed = onednn.qconv_prepack(weight, torch.ones(CHANNELS), 1.0, 128, *geometry, None)
    sums: Tensor = onednn.qconv_pointwise(codes, 1.0, 0, packed, *_PER_CHANNEL, None, *geometry, *_AS_FLOAT)
    return sums


def _onednn_linear(value: int) -> Tensor:
    packed = onednn.qlinear_prepack(_weight(value), None)
    sums: Tensor = onednn.qlinear_pointwise(_codes(CHANNELS), 1.0, 0, packed, *_PER_CHANNEL, None, *_AS_FLOAT)
    return sums


_PER_CHANNEL = (torch.ones(CHANNELS), torch.zeros(CHANNELS, dtype=torch.int32))
_AS_FLOAT: tuple[Any, ...] = (1.0, 0, torch.float32, "none", [], "")


def _x86_conv(value: int) -> Tensor:
    geometry = ([1, 1], [0, 0], [1, 1], 1)
    packed = quantized.conv2d_prepack(_quantized_weight(value, 1, 1), None, *geometry)
    sums: Tensor = quantized.conv2d(_quantized_codes(CHANNELS, 8, 8), packed, *_output(value)).dequantize()
    return sums


def _x86_linear(value: int) -> Tensor:
    packed = quantized.linear_prepack(_quantized_weight(value), None)
    sums: Tensor = quantized.linear(_quantized_codes(CHANNELS), packed, *_output(value)).dequantize()
    return sums


def _output(value: int) -> tuple[float, int]:
    """Scale and zero-point under which the exact sum is 100 steps from the middle."""
    return abs(CODES * value * CHANNELS) / 100, 128


def _codes(*shape: int) -> Tensor:
    return torch.full((2, *shape), CODES, dtype=torch.uint8)


def _weight(value: int, *kernel: int) -> Tensor:
    return torch.full((CHANNELS, CHANNELS, *kernel), value, dtype=torch.int8)


def _quantized_codes(*shape: int) -> Tensor:
    return torch._make_per_tensor_quantized_tensor(_codes(*shape), 1.0, 0)


def _quantized_weight(value: int, *kernel: int) -> Tensor:
    scales, zero_points = torch.ones(CHANNELS, dtype=torch.float64), torch.zeros(CHANNELS, dtype=torch.int64)
    return torch._make_per_channel_quantized_tensor(_weight(value, *kernel), scales, zero_points, 0)
