"""What quantizing a distribution costs: compiled kernels and plain torch, against integrals by many small steps."""

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples import examples
from qdiff_fx.errors import KernelError
from qdiff_fx.kernels import status
from qdiff_fx.kernels.ops.range_errors import error_integral, reference

BOTH = pytest.mark.parametrize("errors", [reference, torch.ops.qdiff.range_errors])


def case(bins, grids, seed=0, wide=1.0):
    """A density on bins of a 64th, some of it outside of every grid where `wide` is above one."""
    torch.manual_seed(seed)
    edges = (torch.arange(bins + 1) - bins // 3) / 64
    density = torch.rand(bins)
    density /= density.sum() / 64
    reach = float(edges.abs().max()) / wide
    return (
        edges,
        density,
        (torch.rand(grids) + 0.5) * reach / 128,
        -torch.rand(grids).mul(90).round(),
        torch.full((grids,), 127.0),
    )


@BOTH
@pytest.mark.parametrize(("bins", "power"), [(1, 2.0), (15, 2.4), (700, 2.4), (1100, 3.5)])
def test_it_is_the_mean_over_the_density(errors, bins, power):
    edges, density, *grids = case(bins, 5, wide=1.5)
    scale, first, last = (each[:, None].double() for each in grids)
    x = edges[:-1, None].double() + (torch.arange(400) + 0.5).double()[None] / 400 / 64
    each = (x.flatten() - scale * (x.flatten() / scale).round().clamp(first, last)).abs().pow(power)
    expected = (each.unflatten(1, (bins, 400)).mean(dim=2) @ density.double()) / 64
    torch.testing.assert_close(errors(edges, density, *grids, power).double(), expected, rtol=2e-3, atol=1e-12)


@given(st.integers(0, 2**31), st.integers(1, 1200), st.integers(0, 90), st.sampled_from([0.5, 1.0, 3.0]))
@examples(40)
def test_both_find_the_same(seed, bins, grids, wide):
    edges, density, *others = case(bins, grids, seed, wide)
    found = torch.ops.qdiff.range_errors(edges, density, *others, 2.4)
    scale, first, last = (each.double()[:, None] for each in others)
    exact = error_integral(edges.double(), scale, first, last, 2.4).diff(dim=1) @ density.double()
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=0)


@pytest.mark.skipif(not status().available, reason="no compiled kernels")
def test_every_instruction_set_finds_the_same():
    """This file is run by each of them, see `test_integer.py`."""
    edges = (torch.arange(1001) - 300) / 64
    density = ((torch.arange(1000) * 7919 % 1009) + 1) / 1009
    scales = (torch.arange(80) + 20) / 1024
    found = torch.ops.qdiff.range_errors(
        edges, density, scales, torch.full((80,), -60.0), torch.full((80,), 195.0), 2.4
    )
    assert hashlib.sha256(found.numpy().tobytes()).hexdigest()[:16] == "8f8986f5e080ff9a"


@BOTH
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({0: torch.zeros(3)}, "expected 9 numbers of the edges"),
        ({1: torch.zeros(2, 4)}, "must be lists"),
        ({2: torch.ones(4, dtype=torch.float64)}, "the scales must be float32"),
        ({4: torch.ones(3)}, "expected 4 numbers of the last multiples"),
        ({5: 0.5}, "power must be 1..8"),
    ],
)
def test_refusals(errors, change, says):
    arguments = [torch.arange(9.0), torch.ones(8), torch.ones(4), torch.zeros(4), torch.ones(4), 2.4]
    for at, value in change.items():
        arguments[at] = value
    with pytest.raises((KernelError, RuntimeError), match=says):
        errors(*arguments)
