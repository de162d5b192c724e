import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples import examples
from qdiff_fx.observers import TimestepObserver
from qdiff_fx.observers.distribution import (
    Distribution,
    distribution_at,
    pooled_distribution,
    quantile,
    quantization_errors,
)
from qdiff_fx.quant.numerics import choose_qparams, fake_quantize, integer_range


def record(*tensors, histogram_bins=2048):
    """Statistics of one tensor for each timestep bin."""
    seen = TimestepObserver(len(tensors), len(tensors), histogram_bins)
    for index, x in enumerate(tensors):
        seen(x.reshape(1, -1), torch.tensor([index]))
    return seen.statistics()


def quantization_error(distribution, lo, hi, bits, **how):
    """Of one distribution: lo, hi [K]."""
    return quantization_errors([distribution], lo[None], hi[None], bits, **how)[0]


def measured_error(x, lo, hi, bits, symmetric, p):
    scale, zero_point = choose_qparams(lo, hi, bits, symmetric=symmetric, signed=True)
    quantized = fake_quantize(x, scale, zero_point, *integer_range(bits, signed=True))
    return float((quantized - x).abs().double().pow(p).mean())


@given(
    st.integers(0, 2**31),
    st.sampled_from([4, 6, 8]),
    st.booleans(),
    st.sampled_from([2.0, 2.4]),
    st.floats(0.3, 1.0),
    st.floats(0.3, 1.0),
)
@examples(40)
def test_error_agrees_with_quantizing_the_samples(seed, bits, symmetric, p, shrink_lo, shrink_hi):
    generator = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.silu(torch.randn(60_000, generator=generator) * 3)
    lo, hi = x.min() * shrink_lo, x.max() * shrink_hi
    distribution = distribution_at(record(x), 0)
    found = quantization_error(distribution, lo.reshape(1), hi.reshape(1), bits, symmetric=symmetric, p=p)
    assert float(found) == pytest.approx(measured_error(x, lo, hi, bits, symmetric, p), rel=0.05)


def test_error_is_right_where_bins_are_as_wide_as_a_step():
    x = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    for histogram_bins in (64, 512):  # 32 and 256 bins over [0, 1), against 255 steps
        distribution = distribution_at(record(x, histogram_bins=histogram_bins), 0)
        found = quantization_error(distribution, torch.zeros(1), torch.ones(1), 8, symmetric=False, p=2.0)
        assert float(found) == pytest.approx((1 / 255) ** 2 / 12, rel=0.01)


def test_several_candidates_at_once_equal_one_by_one():
    distribution = distribution_at(record(torch.randn(1000)), 0)
    lo, hi = -torch.rand(5), torch.rand(5) + 1
    together = quantization_error(distribution, lo, hi, 4, symmetric=False, p=2.4)
    for index in range(5):
        alone = quantization_error(
            distribution, lo[index : index + 1], hi[index : index + 1], 4, symmetric=False, p=2.4
        )
        torch.testing.assert_close(together[index : index + 1], alone, rtol=1e-5, atol=0)


@given(st.integers(0, 2**31), st.lists(st.sampled_from([1e-20, 0.01, 0.3, 1.0, 7.0, 300.0]), min_size=1, max_size=4))
@examples(40)
def test_pooling_is_the_even_mixture_exactly(seed, magnitudes):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 500, (len(magnitudes),), generator=generator).tolist()
    stats = record(*(torch.randn(n, generator=generator) * m for n, m in zip(sizes, magnitudes, strict=True)))
    pooled = pooled_distribution(stats)
    assert float(pooled.mass.sum()) == pytest.approx(1)
    assert bool((pooled.edges.diff() > 0).all())
    ends = torch.tensor([-0.7 * max(magnitudes)]), torch.tensor([0.5 * max(magnitudes)])
    mixed = quantization_error(pooled, *ends, 4, symmetric=False, p=2.0)
    parts = [
        quantization_error(distribution_at(stats, index), *ends, 4, symmetric=False, p=2.0)
        for index in range(len(magnitudes))
    ]
    torch.testing.assert_close(mixed, torch.stack(parts).mean(dim=0), rtol=1e-5, atol=0)


def test_what_float32_cannot_resolve_is_integrated_in_float64():
    # All of it in bins a millionth of their distance from zero wide.
    edges = 5 + torch.arange(9, dtype=torch.float64) * 5e-9
    narrow = Distribution(edges, torch.full((8,), 0.125, dtype=torch.float64))
    hi = 4.9 * (1 - 0.01 * torch.arange(80))
    found = quantization_error(narrow, torch.zeros(80), hi, 8, symmetric=False, p=2.0)
    middle = torch.full((80,), 5 + 2e-8)
    scale, zero_point = choose_qparams(torch.zeros(80), hi, 8, symmetric=False, signed=True)
    steps = (middle / scale).round().clamp(max=127 - zero_point)
    expected = (middle.double() - steps * scale.double()) ** 2
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-12)


def test_quantiles_of_a_uniform_distribution():
    distribution = distribution_at(record(torch.linspace(0, 1, 100_000)[:-1]), 0)
    for probability in (0.0, 0.01, 0.5, 0.99, 1.0):
        assert quantile(distribution, probability) == pytest.approx(probability, abs=1e-4)


def test_zeros_only():
    distribution = pooled_distribution(record(torch.zeros(10)))
    error = quantization_error(distribution, torch.zeros(1), torch.zeros(1), 8, symmetric=False, p=2.4)
    assert float(error) == pytest.approx(0, abs=1e-30)


@given(st.integers(0, 2**31), st.integers(1, 5))
@examples(20)
def test_several_distributions_at_once_equal_one_by_one(seed, count):
    """Also where one of them is too fine for float32, or far smaller than the others."""
    generator = torch.Generator().manual_seed(seed)
    kinds = [lambda x: x, lambda x: x * 1e-20, lambda x: 5 + x * 1e-9, lambda x: x * 0]
    chosen = torch.randint(len(kinds), (count,), generator=generator).tolist()
    stats = record(*(kinds[kind](torch.rand(300, generator=generator)) for kind in chosen))
    distributions = [distribution_at(stats, index) for index in range(count)]
    hi = stats.max_val[:, None].double() * (1 - 0.1 * torch.arange(4))
    together = quantization_errors(distributions, hi * 0, hi, 4, symmetric=False, p=2.4)
    alone = [
        quantization_error(each, h * 0, h, 4, symmetric=False, p=2.4) for each, h in zip(distributions, hi, strict=True)
    ]
    assert torch.equal(together, torch.stack(alone))
