"""Integer attention against torch's float attention, both on the shapes of a Stable Diffusion UNet.

    python -m pytest benchmarks/kernels/bench_attention.py --benchmark-group-by=group --benchmark-columns=min,median

Each group is one shape, so the two rows of a group were measured next to each other. `gops` counts
2 * 2 * B * H * L * S * D operations; `relative_error` is against float attention on unit-normal inputs.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from qdiff_fx.kernels import int_attention_vnni, status

BATCH, HEADS = 2, 8
SELF = [(dim, tokens, tokens) for dim in (40, 64, 80, 160) for tokens in (64, 256, 1024, 4096)]
CROSS = [(40, 4096, 77), (80, 1024, 77), (160, 256, 77), (160, 64, 77)]


def unit_normal(query_len: int, key_len: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v as (B, H, tokens, D) views of (B, tokens, H, D) memory, the layout the UNet gives."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(BATCH, n, HEADS, dim).transpose(1, 2) for n in (query_len, key_len, key_len))
    return q, k, v


def quantized(floats: tuple[Tensor, Tensor, Tensor]) -> tuple:
    scales = [x.abs().max() / 127 for x in floats]
    q, k, v = ((x / scale).round() for x, scale in zip(floats, scales, strict=True))
    codes = ((q + 128).to(torch.uint8), k.to(torch.int8), v.to(torch.int8))
    softmax_scale = floats[0].shape[-1] ** -0.5
    return (*codes, None, scales[0], torch.tensor(128), *scales[1:], softmax_scale, 8, torch.float32)


def note_speed(benchmark, query_len: int, key_len: int, dim: int) -> None:
    operations = 4 * BATCH * HEADS * query_len * key_len * dim
    if benchmark.stats:  # absent with --benchmark-disable
        benchmark.extra_info["gops"] = round(operations / benchmark.stats.stats.min / 1e9, 1)


@pytest.mark.parametrize("kind", ["float", "int8"])
@pytest.mark.parametrize(("dim", "query_len", "key_len"), SELF + CROSS)
def test_attention(benchmark, kind: str, dim: int, query_len: int, key_len: int) -> None:
    benchmark.group = f"D={dim} L={query_len} S={key_len}"
    floats = unit_normal(query_len, key_len, dim)
    if kind == "float":
        benchmark(scaled_dot_product_attention, *floats)
    else:
        args = quantized(floats)
        got, want = int_attention_vnni(*args), scaled_dot_product_attention(*floats)
        benchmark.extra_info["kernel"] = status().kernel or status().reason
        benchmark.extra_info["relative_error"] = round(float((got - want).norm() / want.norm()), 4)
        benchmark(int_attention_vnni, *args)
    note_speed(benchmark, query_len, key_len, dim)
