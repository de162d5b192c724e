"""Probability codes of the AVX-512 VNNI kernel, bit for bit: the 16-bit fixed point that they are defined by.

Networks keep their results when the kernel becomes faster, so its codes are not only near to those of exact
exponentials (test_attention_vnni.py) but these.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kernel_calls import tokens_outside
from torch import Tensor

from qdiff_fx.kernels import int_attention_vnni, status

pytestmark = pytest.mark.skipif(status().kernel != "avx512_vnni", reason="other sets compute exponentials in float")

POINT = 11  # bits after the point of a distance
ENTRIES = 64


def tables(levels: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Entries of 2**-u, steps from each to the next, and how many of their bits are after the point of a code."""
    after = max(n for n in range(8, 16) if levels << n < 65536)
    u = np.arange(ENTRIES + 1) / ENTRIES + 2.0 ** -(POINT + 1)
    entries = np.floor(levels * 2.0 ** (after - u) + 0.5).astype(np.int64)
    return entries[:-1], entries[:-1] - entries[1:], after


def codes(scores: np.ndarray, scale: float, levels: int) -> np.ndarray:
    """Of integer scores (..., keys), one step of which is `scale` base-2 exponents."""
    exponent = math.frexp(scale)[1] + POINT
    left, right = min(max(exponent, 0), 15), min(max(-exponent, 0), 31)
    multiplier = math.floor(min(65535.0, scale * 2.0 ** (16 + POINT - left + right)) + 0.5)
    distance = scores.max(-1, keepdims=True) + (1 << right >> 1) - scores
    far = np.minimum(distance >> right, 65535)
    u = (np.minimum(far, 65535 >> left) << left) * multiplier >> 16
    entries, steps, after = tables(levels)
    entry, way = u >> 5 & 63, (u & 31) << 11
    return (((entries[entry] - (steps[entry] * way >> 16)) >> (u >> POINT)) + (1 << (after - 1))) >> after


def by_definition(
    q: Tensor, k: Tensor, v: Tensor, zero_point: int, scale: float, v_scale: float, levels: int
) -> Tensor:
    scores = (q.numpy().astype(np.int64) - zero_point) @ k.numpy().astype(np.int64).swapaxes(-1, -2)
    p = codes(scores, float(np.float32(scale)) * float(np.float32(math.log2(math.e))), levels)
    sums = torch.from_numpy(p @ v.numpy().astype(np.int64)).float()
    return sums * (torch.tensor(v_scale) / torch.from_numpy(p.sum(-1, keepdims=True)).float())


# Steps of scores from far below a unit of distance, whose last bits are rounded away, to many units.
@pytest.mark.parametrize("scale", [1e-6, 3e-5, 1e-4, 4e-4, 5e-3, 0.2, 3.0, 40.0])
@pytest.mark.parametrize("bits", [1, 3, 7, 8])
def test_codes_are_those_of_the_definition(scale: float, bits: int) -> None:
    torch.manual_seed(0)
    q = tokens_outside(1, 2, 9, 24, torch.uint8)
    k, v = (tokens_outside(1, 2, 205, 24, torch.int8) for _ in range(2))
    one = torch.tensor(1.0)
    got = int_attention_vnni(q, k, v, None, one, torch.tensor(120), one, torch.tensor(0.25), scale, bits, torch.float32)
    assert torch.equal(got, by_definition(q, k, v, 120, scale, 0.25, 2**bits - 1))


@pytest.mark.parametrize("dim", [1, 16, 17, 80, 150, 330, 512])
@pytest.mark.parametrize("key_len", [64, 100, 1100])
def test_every_value_meets_its_probability(dim: int, key_len: int) -> None:
    """Keys are multiplied in another order, and dims in parts: each value of each key counts once, in its place."""
    torch.manual_seed(0)
    q = tokens_outside(2, 1, 50, dim, torch.uint8)
    k, v = (tokens_outside(2, 1, key_len, dim, torch.int8) for _ in range(2))
    one, scale = torch.tensor(1.0), 2e-4 * dim**-0.5
    got = int_attention_vnni(q, k, v, None, one, torch.tensor(128), one, one, scale, 8, torch.float32)
    assert torch.equal(got, by_definition(q, k, v, 128, scale, 1.0, 255))
