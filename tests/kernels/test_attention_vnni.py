"""The compiled kernel against exact arithmetic.

Everything is integer except the probabilities' exponentials, so a result can differ from the float64 one in
two ways only: by float rounding of the last division, and by probability codes that flip because
``p * levels`` lies within rounding of a half: float rounding, or that of the kernel's 16-bit fixed point. The
tolerance counts the codes that may flip, row by row: a row that has none must agree to float rounding.
"""

from __future__ import annotations

import math

import pytest
import torch
from exact_attention import assert_exact
from hypothesis import given
from kernel_calls import Call, attentions, tokens_outside
from torch import Tensor

from examples import examples
from qdiff_fx.kernels import int_attention, int_attention_vnni, status

pytestmark = pytest.mark.skipif(not status().available, reason=status().reason or "-")


@examples(150)
@given(attentions())
def test_kernel_and_reference_are_exact(call: Call) -> None:
    args = tuple(call.arguments.values())
    for op in (int_attention_vnni, int_attention):
        out = op(*args)
        assert out.dtype == args[-1]
        assert out.shape == args[0].shape
        assert_exact(out, args, fixed_point=op is int_attention_vnni)


def call(query_len: int, key_len: int, dim: int, heads: int = 2, bits: int = 8, mask: Tensor | None = None) -> tuple:
    q = tokens_outside(1, heads, query_len, dim, torch.uint8)
    k, v = (tokens_outside(1, heads, key_len, dim, torch.int8) for _ in range(2))
    scales = [torch.tensor(x) for x in (0.02, 0.02, 0.01)]
    return (q, k, v, mask, scales[0], torch.tensor(120), scales[1], scales[2], dim**-0.5, bits, torch.float32)


@pytest.mark.parametrize("key_len", [16, 63, 64, 65, 77, 511, 512, 513, 1100])
@pytest.mark.parametrize("query_len", [1, 6, 48, 49, 200])
def test_block_edges(query_len: int, key_len: int) -> None:
    torch.manual_seed(0)
    args = call(query_len, key_len, dim=40)
    assert_exact(int_attention_vnni(*args), args)


def test_keys_too_many_for_the_largest_row_block() -> None:
    torch.manual_seed(0)
    args = call(query_len=13, key_len=20_000, dim=8, heads=1)
    assert_exact(int_attention_vnni(*args), args)


@pytest.mark.parametrize("key_len", [65_536, 65_537])
def test_largest_sums_do_not_overflow(key_len: int) -> None:
    """Every code extreme and every probability 1: |sum P v| = 255 * 128 * key_len, just below 2**31."""
    q = torch.full((1, 1, 1, 4), 255, dtype=torch.uint8)
    k = torch.full((1, 1, key_len, 4), -128, dtype=torch.int8)
    one = torch.tensor(1.0)
    out = int_attention_vnni(q, k, k, None, one, torch.tensor(0), one, one, 1e-3, 8, torch.float32)
    torch.testing.assert_close(out, torch.full((1, 1, 1, 4), -128.0))


def test_largest_scores_do_not_overflow() -> None:
    q = torch.full((1, 1, 2, 256), 255, dtype=torch.uint8)
    k = torch.tensor([-128, 127, 126], dtype=torch.int8).view(1, 1, 3, 1).repeat(1, 1, 1, 256)
    one = torch.tensor(1.0)
    out = int_attention_vnni(q, k, k, None, one, torch.tensor(0), one, one, 1.0, 8, torch.float32)
    torch.testing.assert_close(out, torch.full((1, 1, 2, 256), 127.0))


@pytest.mark.parametrize("op", [int_attention, int_attention_vnni], ids=["reference", "vnni"])
@pytest.mark.parametrize("as_float", [False, True])
def test_fully_masked_rows_are_zero(op, as_float: bool) -> None:
    torch.manual_seed(0)
    mask = torch.rand(11, 70) > 0.5
    mask[[0, 4, 10]] = False
    added = torch.zeros(11, 70).masked_fill(~mask, -math.inf)
    args = call(11, 70, 24, mask=added if as_float else mask)
    out = op(*args)
    assert (out[:, :, [0, 4, 10]] == 0).all()
    assert (out[:, :, 1] != 0).any()
    assert_exact(out, args)


@pytest.mark.parametrize("op", [int_attention, int_attention_vnni], ids=["reference", "vnni"])
@pytest.mark.parametrize("shape", [(0, 5, 8), (5, 0, 8), (5, 5, 0), (0, 0, 0)])
def test_zero_length(op, shape: tuple[int, int, int]) -> None:
    query_len, key_len, dim = shape
    q = torch.zeros(2, 2, query_len, dim, dtype=torch.uint8)
    k = torch.zeros(2, 2, key_len, dim, dtype=torch.int8)
    one = torch.tensor(1.0)
    out = op(q, k, k, None, one, torch.tensor(0), one, one, 1.0, 8, torch.float32)
    assert out.shape == (2, 2, query_len, dim)
    assert (out == 0).all()


def test_sixteen_probability_bits_run_on_the_reference() -> None:
    torch.manual_seed(0)
    args = call(9, 20, 8, bits=16)
    torch.testing.assert_close(int_attention_vnni(*args), int_attention(*args), rtol=0, atol=0)


def test_wide_heads_run_on_the_reference() -> None:
    torch.manual_seed(0)
    args = call(9, 20, 513)
    torch.testing.assert_close(int_attention_vnni(*args), int_attention(*args), rtol=0, atol=0)


def test_result_does_not_depend_on_threads() -> None:
    torch.manual_seed(0)
    args = call(300, 300, 40, heads=4)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = int_attention_vnni(*args)
        torch.set_num_threads(3)
        shared = int_attention_vnni(*args)
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(alone, shared, rtol=0, atol=0)
