"""A step of learning how weights are rounded: against autograd and torch's Adam, and the same everywhere."""

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples import examples
from qdiff_fx.errors import KernelError
from qdiff_fx.kernels.dispatch import status
from qdiff_fx.kernels.ops.adaround_step import reference, rounded_up
from qdiff_fx.quant.numerics import weight_range

compiled = torch.ops.qdiff.adaround_step
BOTH = pytest.mark.parametrize("step", [reference, compiled], ids=["plain", "compiled"])


def state(rows=5, columns=37, bits=4, dtype=torch.float32, seed=0):
    """V, two moments, the weight, base codes, scales and a gradient."""
    draw = torch.Generator().manual_seed(seed)
    up = torch.randn(rows, columns, generator=draw) * 2
    base = torch.randint(-(2 ** (bits - 1)) - 1, 2 ** (bits - 1), (rows, columns), generator=draw).clamp_(-128, 127)
    scales, gradient = torch.rand(rows, generator=draw) + 0.01, torch.randn(rows, columns, generator=draw)
    moments = torch.zeros_like(up), torch.zeros_like(up)
    return up, *moments, torch.empty(rows, columns, dtype=dtype), base.to(torch.int8), scales, gradient.to(dtype)


@BOTH
@given(st.integers(0, 2**31), st.integers(2, 8), st.sampled_from([0.0, 0.01]), st.sampled_from([20.0, 7.3, 2.0]))
@examples(15)
def test_it_is_autograd_and_adam(step, seed, bits, pull, beta):
    up, first, second, weight, base, scales, gradient = state(bits=bits, seed=seed)
    expected = up.clone().requires_grad_()
    adam = torch.optim.Adam([expected], lr=0.05)
    for taken in range(1, 6):
        soft = rounded_up(expected)
        loss = (((base + soft).clamp(*weight_range(bits)) * scales[:, None]) * gradient).sum()
        adam.zero_grad()
        (loss + pull * (1 - (2 * soft - 1).abs().pow(beta)).sum()).backward()
        adam.step()
        step(up, first, second, weight, base, scales, gradient, bits, taken, 0.05, pull, beta)
        torch.testing.assert_close(up, expected.detach(), rtol=1e-4, atol=2e-4)
    made = (base + rounded_up(up)).clamp(*weight_range(bits)) * scales[:, None]
    torch.testing.assert_close(weight, made, rtol=1e-5, atol=1e-6)


@given(st.integers(0, 2**31), st.integers(0, 5), st.integers(0, 70), st.sampled_from([torch.bfloat16, torch.float16]))
@examples(15)
def test_compiled_is_plain_torch_in_every_dtype(seed, rows, columns, dtype):
    found, expected = state(rows, columns, dtype=dtype, seed=seed), state(rows, columns, dtype=dtype, seed=seed)
    for taken in range(1, 4):
        compiled(*found, 4, taken, 0.02, 0.01, 5.0)
        reference(*expected, 4, taken, 0.02, 0.01, 5.0)
    for a, b in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[3], expected[3], rtol=2**-7, atol=1e-5)


@BOTH
def test_what_clips_or_has_settled_stays(step):
    up, first, second, weight, base, scales, gradient = state(1, 4)
    up[0] = torch.tensor([20.0, -20.0, 0.0, 0.0])  # settled, settled, undecided, undecided
    base[0] = torch.tensor([0, 0, 0, 7], dtype=torch.int8)  # the last one clips
    before = up.clone()
    step(up, first, second, weight, base, scales, gradient, 4, 1, 0.1, 0.0, 2.0)
    assert (up == before).tolist() == [[True, True, False, True]]
    assert weight[0, 3] == 7 * scales[0]


@pytest.mark.skipif(not status().available, reason="no compiled kernels")
def test_every_instruction_set_makes_the_same_of_it():
    """This file is run by each of them, see `test_integer.py`."""
    numbers = (torch.arange(9 * 700) * 7919 % 10007 - 5003).float().view(9, 700) / 5003
    digest = hashlib.sha256()
    for bits, dtype in ((4, torch.float32), (8, torch.bfloat16), (2, torch.float16)):
        tensors = [numbers * 3, torch.zeros(9, 700), torch.zeros(9, 700), torch.empty(9, 700, dtype=dtype)]
        base, scales = (numbers * 2 ** (bits - 1)).floor().to(torch.int8), numbers[:, 3].abs() + 2**-7
        for taken in range(1, 9):
            compiled(*tensors, base, scales, numbers.pow(3).flip(1).to(dtype), bits, taken, 0.02, 0.01, 9.5 - taken)
        for each in tensors:
            digest.update(each.view(torch.uint8).numpy().tobytes())
    assert digest.hexdigest()[:16] == "213bd3cafd6b26cc"


def test_rows_do_not_depend_on_those_beside_them_or_on_threads():
    whole = state(300, 400)
    part = [each[17:18].clone() for each in whole]
    compiled(*whole, 4, 1, 0.02, 0.01, 3.0)
    compiled(*part, 4, 1, 0.02, 0.01, 3.0)
    assert all(torch.equal(a[17:18], b) for a, b in zip(whole, part, strict=True))


@BOTH
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({0: torch.zeros(3)}, "rows of numbers"),
        ({0: torch.zeros(2, 3, dtype=torch.float16)}, "V must be contiguous"),
        ({1: torch.zeros(3, 2).T}, "first moment must be contiguous"),
        ({2: torch.zeros(2, 4)}, "second moment must be"),
        ({3: torch.zeros(2, 3, dtype=torch.int32)}, "weight must be float32"),
        ({4: torch.zeros(2, 3)}, "codes must be"),
        ({5: torch.zeros(3)}, "scales must be"),
        ({6: torch.zeros(3, 2)}, "gradient must be"),
        ({7: 9}, "bits must be 2..8"),
        ({8: 0}, "step must be"),
        ({9: float("nan")}, "the rate must be"),
        ({10: -1.0}, "the pull must be"),
        ({11: 0.0}, "beta must be"),
    ],
)
def test_refusals(step, change, says):
    arguments = [*state(2, 3), 4, 1, 0.02, 0.01, 2.0]
    for index, argument in change.items():
        arguments[index] = argument
    with pytest.raises((KernelError, RuntimeError), match=says):
        step(*arguments)
