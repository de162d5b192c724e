"""Our integer layers against a lone call of oneDNN's on the same codes, on shapes of the measured networks.

    python -m pytest benchmarks/kernels/bench_layers.py --benchmark-group-by=group --benchmark-columns=min,median

Each group is one shape, so the two rows of a group were measured next to each other. `gops` counts a multiply-add as
two operations. Results are float32, bias added, so that both do the same work.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from qdiff_fx.kernels import status

# batch, input channels, height and width, output channels, kernel size, stride
CONVOLUTIONS = [
    *[(2, 320, 64, 320, 3, 1), (2, 640, 32, 640, 3, 1), (2, 1280, 16, 1280, 3, 1), (2, 1280, 8, 1280, 3, 1)],
    *[(2, 960, 64, 320, 3, 1), (2, 320, 64, 320, 1, 1), (2, 640, 32, 640, 1, 1)],
    *[(4, 64, 64, 64, 3, 1), (4, 128, 32, 128, 3, 1), (4, 256, 16, 256, 3, 1), (4, 512, 8, 512, 3, 1)],
    *[(4, 128, 64, 64, 1, 1), (4, 128, 32, 128, 3, 2), (1, 128, 32, 128, 3, 1), (1, 256, 16, 256, 3, 1)],
]
# rows, input features, output features
LINEARS = [
    (8192, 320, 320),
    (8192, 320, 2560),
    (8192, 1280, 320),
    (2048, 640, 640),
    (512, 1280, 1280),
    (1024, 256, 256),
]
SCALE, ZERO_POINT = 0.02, 117


def codes(*shape: int) -> Tensor:
    torch.manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def weights(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """int8 codes, scales and a bias."""
    weight = torch.randint(-127, 128, shape, dtype=torch.int8)
    return weight, torch.rand(shape[0]) * 0.01 + 0.001, torch.randn(shape[0])


def packed_operands(weight: Tensor, scales: Tensor, bits: int = 8) -> list[Any]:
    """Our operators' weights, scales, sums and number of outputs, for one source."""
    packed, sums = torch.ops.qdiff.pack_weight(weight, bits)
    return [[packed], [torch.cat([scales, torch.zeros(sums.numel() - len(scales))])], [sums], len(scales)]


def note(benchmark, operations: float) -> None:
    if benchmark.stats:  # absent with --benchmark-disable
        benchmark.extra_info["gops"] = round(operations / benchmark.stats["median"] / 1e9)


@pytest.mark.skipif(not status().available, reason=status().reason or "-")
@pytest.mark.parametrize("library", ["qdiff", "onednn"])
@pytest.mark.parametrize("shape", CONVOLUTIONS, ids=lambda shape: "x".join(map(str, shape)))
def test_convolution(benchmark, shape, library):
    batch, channels, size, outputs, kernel, stride = shape
    benchmark.group = f"conv {shape}"
    x = codes(batch, channels, size, size).contiguous(memory_format=torch.channels_last)
    weight, scales, bias = weights(outputs, channels, kernel, kernel)
    pad, window = kernel // 2, ([stride] * 2, [kernel // 2] * 2, [1, 1])
    if library == "qdiff":
        geometry = ([kernel] * 2, [stride] * 2, [pad] * 4, [1, 1], [1, 1])
        operands = packed_operands(weight, scales)
        args: tuple[Any, ...] = ([x], [SCALE], [ZERO_POINT], *operands, *geometry, bias, None, None)
        run = lambda: torch.ops.qdiff.int_conv(*args, 0, torch.float32, 1.0, 0, 0, 0)  # noqa: E731
    else:
        packed = torch.ops.onednn.qconv_prepack(weight, scales, 1.0, 128, *window, 1, None)
        zeros = torch.zeros(outputs, dtype=torch.int32)
        args = (x, SCALE, ZERO_POINT, packed, scales, zeros, bias, *window, 1, 1.0, 0, torch.float32, "none", [], "")
        run = lambda: torch.ops.onednn.qconv_pointwise(*args)  # noqa: E731
    out = benchmark(run)
    note(benchmark, 2.0 * out.numel() * channels * kernel * kernel)


@pytest.mark.skipif(not status().available, reason=status().reason or "-")
@pytest.mark.parametrize("library", ["qdiff", "onednn"])
@pytest.mark.parametrize("shape", LINEARS, ids=lambda shape: "x".join(map(str, shape)))
def test_linear(benchmark, shape, library):
    rows, features, outputs = shape
    benchmark.group = f"linear {shape}"
    x = codes(rows, features)
    weight, scales, bias = weights(outputs, features)
    if library == "qdiff":
        operands = packed_operands(weight, scales)
        args: tuple[Any, ...] = (x, SCALE, ZERO_POINT, *operands, bias, None, 0, torch.float32, 1.0, 0, 0, 0)
        run = lambda: torch.ops.qdiff.int_linear(*args)  # noqa: E731
    else:
        packed = torch.ops.onednn.qlinear_prepack(weight, None)
        zeros = torch.zeros(outputs, dtype=torch.int32)
        args = (x, SCALE, ZERO_POINT, packed, scales, zeros, bias, 1.0, 0, torch.float32, "none", [], "")
        run = lambda: torch.ops.onednn.qlinear_pointwise(*args)  # noqa: E731
    out = benchmark(run)
    note(benchmark, 2.0 * out.numel() * features)
