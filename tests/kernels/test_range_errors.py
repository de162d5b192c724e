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
        [bins],
        (torch.rand(1, grids) + 0.5) * reach / 128,
        -torch.rand(1, grids).mul(90).round(),
        torch.full((1, grids), 127.0),
    )


@BOTH
@pytest.mark.parametrize(("bins", "power"), [(1, 2.0), (15, 2.4), (700, 2.4), (1100, 3.5)])
def test_it_is_the_mean_over_the_density(errors, bins, power):
    edges, density, _, *grids = case(bins, 5, wide=1.5)
    scale, first, last = (each[0, :, None].double() for each in grids)
    x = edges[:-1, None].double() + (torch.arange(400) + 0.5).double()[None] / 400 / 64
    each = (x.flatten() - scale * (x.flatten() / scale).round().clamp(first, last)).abs().pow(power)
    expected = (each.unflatten(1, (bins, 400)).mean(dim=2) @ density.double()) / 64
    torch.testing.assert_close(
        errors(edges, density, [bins], *grids, power)[0].double(), expected, rtol=2e-3, atol=1e-12
    )


@given(st.integers(0, 2**31), st.integers(1, 1200), st.integers(0, 90), st.sampled_from([0.5, 1.0, 3.0]))
@examples(40)
def test_both_find_the_same(seed, bins, grids, wide):
    edges, density, _, *others = case(bins, grids, seed, wide)
    found = torch.ops.qdiff.range_errors(edges, density, [bins], *others, 2.4)
    scale, first, last = (each[0].double()[:, None] for each in others)
    exact = error_integral(edges.double(), scale, first, last, 2.4).diff(dim=1) @ density.double()
    torch.testing.assert_close(found[0].double(), exact, rtol=1e-4, atol=0)


@BOTH
def test_each_distribution_has_its_own_grids(errors):
    cases = [case(bins, 7, seed) for seed, bins in enumerate((3, 700, 1, 1025))]
    edges, density, bins, *grids = zip(*cases, strict=True)
    together = errors(torch.cat(edges), torch.cat(density), sum(bins, []), *map(torch.cat, grids), 2.4)
    assert torch.equal(together, torch.cat([errors(*each, 2.4) for each in cases]))


@pytest.mark.skipif(not status().available, reason="no compiled kernels")
def test_every_instruction_set_finds_the_same():
    """This file is run by each of them, see `test_integer.py`."""
    edges = (torch.arange(1001) - 300) / 64
    density = ((torch.arange(1000) * 7919 % 1009) + 1) / 1009
    scales = (torch.arange(80) + 20) / 1024
    found = torch.ops.qdiff.range_errors(
        edges, density, [1000], scales[None], torch.full((1, 80), -60.0), torch.full((1, 80), 195.0), 2.4
    )
    assert hashlib.sha256(found.numpy().tobytes()).hexdigest()[:16] == "8f8986f5e080ff9a"


@BOTH
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({0: torch.zeros(3)}, r"the edges must have the shape \[9\]"),
        ({1: torch.zeros(2, 4)}, r"the density must have the shape \[8\]"),
        ({2: [4, 3]}, "a row of scales for each distribution"),
        ({2: [0]}, "a distribution"),
        ({2: [1 << 62]}, "the edges must have the shape|a distribution cannot have"),
        ({3: torch.ones(1, 4, dtype=torch.float64)}, "the scales must be float32"),
        ({3: torch.ones(4)}, "a row of scales"),
        ({5: torch.ones(1, 3)}, r"the last multiples must have the shape \[1, 4\]"),
        ({6: 0.5}, "power must be 1..8"),
    ],
)
def test_refusals(errors, change, says):
    arguments = [torch.arange(9.0), torch.ones(8), [8], torch.ones(1, 4), torch.zeros(1, 4), torch.ones(1, 4), 2.4]
    for at, value in change.items():
        arguments[at] = value
    with pytest.raises((KernelError, RuntimeError), match=says):
        errors(*arguments)
