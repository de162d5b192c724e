"""3x3 convolutions of stride 1 computed directly and by Winograd's algorithm, on shapes of the measured networks.

    python -m pytest benchmarks/kernels/bench_winograd.py --benchmark-group-by=group --benchmark-columns=min,median

Each group is one shape. `cheapest` is what networks take: whichever way the kernels expect to be faster. `gops` counts
the multiply-adds of the direct way, two operations each. `QDIFF_KERNELS` forces an instruction set, `OMP_NUM_THREADS=1`
one core.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.kernels.bench_layers import CONVOLUTIONS, SCALE, ZERO_POINT, codes, note, packed_operands, weights
from qdiff_fx.kernels import status

SHAPES = [shape for shape in CONVOLUTIONS if shape[4:] == (3, 1)]


@pytest.mark.skipif(not status().available, reason=status().reason or "-")
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("algorithm", ["direct", "winograd", "cheapest"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_winograd(benchmark, shape, algorithm, bits):
    batch, channels, size, outputs, _, _ = shape
    benchmark.group = f"conv {shape}, {bits} bits"
    x = codes(batch, channels, size, size).contiguous(memory_format=torch.channels_last)
    weight, scales, bias = weights(outputs, channels, 3, 3)
    limit = 2 ** (bits - 1)
    operands = packed_operands(weight.clamp(-limit, limit - 1), scales, bits)
    geometry = ([3, 3], [1, 1], [1] * 4, [1, 1], [1, 1])
    args: tuple[Any, ...] = ([x], [SCALE], [ZERO_POINT], *operands, *geometry, bias, None, None)
    torch.ops.qdiff.set_convolution_algorithm(algorithm)
    try:
        out = benchmark(lambda: torch.ops.qdiff.int_conv(*args, 0, torch.float16, 1.0, 0, 0, 0))
    finally:
        torch.ops.qdiff.set_convolution_algorithm("cheapest")
    note(benchmark, 2.0 * out.numel() * channels * 9)
