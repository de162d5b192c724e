"""The plain-torch reference: small cases by hand, and closeness to float attention."""

from __future__ import annotations

import math

import pytest
import torch

from qdiff_fx.errors import KernelError
from qdiff_fx.kernels import int_attention, int_attention_vnni, status


def quantized(*shape: int, key_len: int = 0) -> tuple[list[torch.Tensor], list]:
    """Float q, k, v of a (..., L, D) shape, and the first eight arguments of the op made from them."""
    keys = (*shape[:-2], key_len or shape[-2], shape[-1])
    floats = [torch.randn(*shape), torch.randn(*keys), torch.randn(*keys)]
    scales = [x.abs().max() / 127 for x in floats]
    codes = [(x / scale).round() for x, scale in zip(floats, scales, strict=True)]
    q = (codes[0] + 128).to(torch.uint8)
    k, v = (x.to(torch.int8) for x in codes[1:])
    return floats, [q, k, v, None, scales[0], torch.tensor(128), scales[1], scales[2]]


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


def test_one_row_by_hand() -> None:
    # Scores 4 and 4 + ln 3: probabilities 1 and 1/3 of 15 levels are codes 5 and 15.
    q = torch.tensor([[12, 14]], dtype=torch.uint8)
    k = torch.tensor([[2, 0], [2, 1]], dtype=torch.int8)
    v = torch.tensor([[8, -4], [0, 100]], dtype=torch.int8)
    one = torch.tensor(1.0)
    scale = math.log(3) / 4
    out = int_attention(q, k, v, None, one, torch.tensor(10), one, one * 0.5, scale, 4, torch.float32)
    expected = 0.5 * torch.tensor([[8 * 5 + 0 * 15, -4 * 5 + 100 * 15]]) / 20
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("dim", [40, 64, 80])
def test_close_to_float_attention(dim: int) -> None:
    torch.manual_seed(0)
    (q, k, v), args = quantized(2, 3, 256, dim)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert relative_error(int_attention(*args, dim**-0.5, 8, torch.float32), want) < 0.02


def test_more_probability_bits_are_closer_to_float() -> None:
    torch.manual_seed(0)
    (q, k, v), args = quantized(1, 2, 128, 32)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    results = [int_attention(*args, 32**-0.5, bits, torch.float32) for bits in (4, 6, 8, 16)]
    errors = [relative_error(result, want) for result in results]
    assert errors == sorted(errors, reverse=True)


def test_bool_mask_equals_minus_infinity() -> None:
    torch.manual_seed(0)
    _, args = quantized(1, 2, 9, 8, key_len=11)
    keep = torch.rand(9, 11) > 0.5
    added = torch.zeros(9, 11).masked_fill(~keep, -math.inf)
    results = [int_attention(*args[:3], mask, *args[4:], 0.3, 8, torch.float32) for mask in (keep, added)]
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_masked_keys_have_no_influence() -> None:
    torch.manual_seed(0)
    _, args = quantized(1, 2, 5, 8, key_len=12)
    keep = (torch.arange(12) < 7).expand(5, 12)
    masked = int_attention(*args[:3], keep, *args[4:], 0.3, 8, torch.float32)
    first_keys = [x[..., :7, :] for x in args[1:3]]
    shorter = int_attention(args[0], *first_keys, *args[3:], 0.3, 8, torch.float32)
    torch.testing.assert_close(masked, shorter)


def test_long_queries_in_blocks_equal_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    _, args = quantized(1, 2, 50, 8, key_len=13)
    whole = int_attention(*args, 0.3, 8, torch.float32)
    monkeypatch.setattr("qdiff_fx.kernels.ops.int_attention._SCRATCH_ELEMENTS", 2 * 13 * 7)
    torch.testing.assert_close(int_attention(*args, 0.3, 8, torch.float32), whole, rtol=0, atol=0)


BAD = {
    "q must be uint8": {"q": torch.zeros(2, 3, 4, dtype=torch.int8)},
    "shapes must be": {"k": torch.zeros(2, 6, 4, dtype=torch.int8)},
    "at least 2 dims": {"q": torch.zeros(4, dtype=torch.uint8)},
    "mask must be bool or floating": {"mask": torch.zeros(3, 5, dtype=torch.int64)},
    "mask .* does not broadcast": {"mask": torch.zeros(4, 5)},
    "q_scale must be a positive finite": {"q_scale": torch.tensor(0.0)},
    "k_scale must be a positive finite": {"k_scale": torch.tensor(math.nan)},
    "v_scale must be a positive finite": {"v_scale": torch.tensor(math.inf)},
    "softmax_scale must be a positive finite": {"softmax_scale": -1.0},
    "q_zero_point must be 0..255": {"q_zero_point": torch.tensor(256)},
    "prob_bits must be 1..16": {"prob_bits": 17},
    "out_dtype must be floating": {"out_dtype": torch.int32},
}


@pytest.mark.parametrize("op", [int_attention, int_attention_vnni], ids=["reference", "vnni"])
@pytest.mark.parametrize("message", BAD)
def test_bad_input_says_what_is_wrong(op, message: str) -> None:
    status()
    arguments = {
        "q": torch.zeros(2, 3, 4, dtype=torch.uint8),
        "k": torch.zeros(2, 5, 4, dtype=torch.int8),
        "v": torch.zeros(2, 5, 4, dtype=torch.int8),
        "mask": None,
        "q_scale": torch.tensor(0.1),
        "q_zero_point": torch.tensor(128),
        "k_scale": torch.tensor(0.1),
        "v_scale": torch.tensor(0.1),
        "softmax_scale": 0.5,
        "prob_bits": 8,
        "out_dtype": torch.float32,
    }
    op(**arguments)
    # C++ can only raise RuntimeError.
    with pytest.raises((KernelError, RuntimeError), match=message):
        op(**(arguments | BAD[message]))
