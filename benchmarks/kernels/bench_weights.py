"""Weights of 8 and of 4 bits: the same layer from weights that no cache holds, as a whole network reads them.

    python -m pytest benchmarks/kernels/bench_weights.py --benchmark-group-by=group --benchmark-columns=min,median

Every call takes the next of so many copies of the layer that their weights are larger than the last cache.
"""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pytest
import torch

from benchmarks.kernels.bench_layers import SCALE, ZERO_POINT, codes, packed_operands, weights
from qdiff_fx.kernels import status

COLD = 96 << 20  # bytes of 8-bit weights
# batch, input channels, height and width, output channels
CONVOLUTIONS = [(1, 512, 8, 512), (1, 1024, 8, 512), (1, 256, 16, 256), (4, 512, 8, 512), (2, 1280, 8, 1280)]


@pytest.mark.skipif(not status().available, reason=status().reason or "-")
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", CONVOLUTIONS, ids=lambda shape: "x".join(map(str, shape)))
def test_convolution(benchmark, shape, bits):
    batch, channels, size, outputs = shape
    benchmark.group = f"conv 3x3 {shape}"
    x = codes(batch, channels, size, size).contiguous(memory_format=torch.channels_last)
    limit = 1 << (bits - 1)
    copies = -(-COLD // (outputs * channels * 9))
    geometry = ([3, 3], [1, 1], [1] * 4, [1, 1], [1, 1])
    layers: list[tuple[Any, ...]] = []
    for _ in range(copies):
        weight, scales, bias = weights(outputs, channels, 3, 3)
        operands = packed_operands(weight.clamp(-limit, limit - 1), scales, bits)
        layers.append(([x], [SCALE], [ZERO_POINT], *operands, *geometry, bias, None, None))
    layer = cycle(layers)
    benchmark.pedantic(
        lambda: torch.ops.qdiff.int_conv(*next(layer), 0, torch.float16, 1.0, 0, 0, 0),
        rounds=5 * copies,
        warmup_rounds=copies,
    )
