import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples import examples
from qdiff_fx.errors import CalibrationError, ConfigError
from qdiff_fx.observers import (
    MinMaxObserver,
    TimestepObserver,
    choose_range,
    minmax_range,
    moving_average_range,
    mse_range,
    percentile_range,
)
from qdiff_fx.quant.numerics import choose_qparams, fake_quantize, integer_range
from qdiff_fx.quant.range_methods import range_methods

METHODS = range_methods()


def record(*tensors, kind=TimestepObserver):
    """Statistics of one tensor for each timestep bin; None leaves the bin empty."""
    seen = kind(len(tensors), len(tensors), name="mid.conv")
    for index, x in enumerate(tensors):
        if x is not None:
            seen(x.reshape(1, -1), torch.tensor([index]))
    return seen.statistics()


def normal(count, scale=1.0, seed=0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)) * scale


def skewed(count, seed=0):
    return torch.nn.functional.silu(normal(count, 3.0, seed))


def l24_error(x, lo, hi, bits, symmetric=False):
    scale, zero_point = choose_qparams(lo, hi, bits, symmetric=symmetric, signed=True)
    quantized = fake_quantize(x, scale, zero_point, *integer_range(bits, signed=True))
    return float((quantized - x).abs().double().pow(2.4).mean())


@pytest.mark.parametrize("method", METHODS)
class TestEveryMethod:
    @given(st.integers(0, 2**31), st.integers(2, 8), st.booleans())
    @examples(15)
    def test_range_is_ordered_and_inside_what_was_seen(self, method, seed, bits, per_timestep):
        stats = record(normal(50, 1.0, seed), normal(500, 5.0, seed + 1), skewed(70, seed))
        lo, hi = choose_range(stats, method, bits, per_timestep)
        assert lo.shape == hi.shape == ((3,) if per_timestep else ())
        assert lo.dtype == hi.dtype == torch.float32
        assert bool((lo <= hi).all())
        assert bool((lo >= stats.min_val.min()).all())
        assert bool((hi <= stats.max_val.max()).all())

    @pytest.mark.parametrize("symmetric", [False, True])
    def test_zeros_only(self, method, symmetric):
        lo, hi = choose_range(record(torch.zeros(5)), method, 8, symmetric=symmetric)
        assert lo == hi == 0
        choose_qparams(lo, hi, 8, symmetric=symmetric, signed=symmetric)

    def test_constant(self, method):
        lo, hi = choose_range(record(torch.full((5,), 0.5)), method, 8)
        scale, zero_point = choose_qparams(lo, hi, 8, symmetric=False, signed=False)
        assert float(fake_quantize(torch.tensor(0.5), scale, zero_point, 0, 255)) == pytest.approx(0.5, rel=0.01)

    def test_bins_without_data_copy_their_nearest_neighbour(self, method):
        stats = record(None, normal(100, 1.0), None, None, normal(100, 9.0), None)
        for table in choose_range(stats, method, 8, per_timestep=True):
            assert len(set(table[:3].tolist())) == 1
            assert len(set(table[3:].tolist())) == 1
            assert table[0] != table[5]

    @pytest.mark.parametrize("per_timestep", [False, True])
    def test_an_observer_that_saw_nothing_says_what_to_do(self, method, per_timestep):
        with pytest.raises(CalibrationError, match=r"mid.conv: the observer saw no data. Run calibrate"):
            choose_range(record(None, None), method, 8, per_timestep)

    def test_many_samples_at_one_timestep_do_not_outweigh_the_others(self, method):
        few, many = normal(400, 3.0, seed=1), normal(400, 1.0, seed=2)
        even = choose_range(record(few, many), method, 4)
        uneven = choose_range(record(few, many.repeat(50)), method, 4)
        assert even == uneven


def test_minmax_is_exact():
    stats = record(torch.tensor([-1.0, 2.0]), torch.tensor([0.5, 3.0]))
    assert minmax_range(stats) == (-1.0, 3.0)
    lo, hi = minmax_range(stats, per_timestep=True)
    assert lo.tolist() == [-1.0, 0.5]
    assert hi.tolist() == [2.0, 3.0]


def test_moving_average_goes_from_the_noisiest_timestep_down():
    stats = record(torch.tensor([0.0, 1.0]), None, torch.tensor([-8.0, 5.0]))
    lo, hi = moving_average_range(stats, momentum=0.75)
    assert float(lo) == 0.75 * -8
    assert float(hi) == 0.75 * 5 + 0.25 * 1
    lo, hi = moving_average_range(stats, momentum=0.75, per_timestep=True)
    assert hi.tolist() == [4.0, 4.0, 5.0]


def test_the_moving_average_has_the_papers_momentum():
    stats = record(torch.tensor([0.0, 1.0]), torch.tensor([-8.0, 5.0]))
    assert [float(end) for end in moving_average_range(stats)] == pytest.approx([0.95 * -8, 0.95 * 5 + 0.05 * 1])
    chosen = choose_range(stats, "moving_average", bits=8)
    assert [float(end) for end in chosen] == [float(end) for end in moving_average_range(stats, momentum=0.95)]


def test_moving_average_with_no_memory_is_the_last_step():
    stats = record(normal(20, 2.0), normal(20))
    assert moving_average_range(stats, momentum=0.0) == (stats.min_val[0], stats.max_val[0])


def test_percentile_drops_the_tails():
    stats = record(torch.cat([torch.linspace(-1, 1, 100_000), torch.tensor([50.0])]))
    lo, hi = percentile_range(stats, percentile=99.9)
    assert float(lo) == pytest.approx(-0.998, abs=0.05)
    assert float(hi) == pytest.approx(0.998, abs=0.05)
    assert percentile_range(stats, percentile=100) == minmax_range(stats)


def test_percentile_refuses_nonsense():
    with pytest.raises(ConfigError, match="50"):
        percentile_range(record(normal(10)), percentile=50)


class TestMse:
    @given(st.integers(0, 2**31), st.sampled_from([4, 8]), st.booleans())
    @examples(20)
    def test_better_than_minmax(self, seed, bits, symmetric):
        x = torch.cat([skewed(20_000, seed), torch.tensor([60.0, -8.0])])
        stats = record(x)
        found = l24_error(x, *mse_range(stats, bits, symmetric=symmetric), bits, symmetric)
        assert found < l24_error(x, *minmax_range(stats), bits, symmetric)

    @pytest.mark.parametrize("bits", [4, 8])
    def test_close_to_the_best_of_all_pairs_of_ends(self, bits):
        x = skewed(20_000)
        stats = record(x)
        fractions = [1 - 0.04 * i for i in range(20)]
        lo, hi = minmax_range(stats)
        best = min(l24_error(x, lo * a, hi * b, bits) for a in fractions for b in fractions)
        assert l24_error(x, *mse_range(stats, bits), bits) <= best * 1.05

    @pytest.mark.parametrize("bits", [4, 8])
    def test_two_free_ends_are_better_than_one_common_factor(self, bits):
        x = torch.cat([normal(20_000), torch.tensor([30.0, -3.9])])
        stats = record(x)
        lo, hi = minmax_range(stats)
        joint = min(l24_error(x, lo * f, hi * f, bits) for f in (1 - 0.01 * i for i in range(80)))
        assert l24_error(x, *mse_range(stats, bits), bits) < joint

    def test_fewer_bits_clip_more(self):
        stats = record(normal(50_000))
        widths = [float(hi - lo) for lo, hi in (mse_range(stats, bits) for bits in (2, 4, 6, 8))]
        assert widths == sorted(widths)

    def test_symmetric_ranges_are_symmetric(self):
        lo, hi = mse_range(record(skewed(1000)), 8, symmetric=True)
        assert lo == -hi

    def test_a_table_serves_every_timestep_at_least_as_well_as_one_range(self):
        tensors = [skewed(5000, seed) * scale for seed, scale in enumerate((0.1, 1.0, 10.0))]
        stats = record(*tensors)
        one, table = mse_range(stats, 8), mse_range(stats, 8, per_timestep=True)
        for x, lo, hi in zip(tensors, *table, strict=True):
            assert l24_error(x, lo, hi, 8) <= l24_error(x, *one, 8) * 1.02

    def test_does_not_depend_on_the_unit(self):
        x = skewed(5000)
        lo, hi = mse_range(record(x), 8)
        scaled_lo, scaled_hi = mse_range(record(x * 2.0**-20), 8)
        torch.testing.assert_close((scaled_lo * 2**20, scaled_hi * 2**20), (lo, hi))

    def test_refuses_candidates_that_shrink_to_nothing(self):
        with pytest.raises(ConfigError, match="101 candidates"):
            mse_range(record(normal(10)), 8, candidates=101)


def test_ranges_that_need_a_histogram_say_so():
    stats = record(normal(10), kind=MinMaxObserver)
    assert choose_range(stats, "minmax", 8) == minmax_range(stats)
    for method in ("percentile", "mse"):
        with pytest.raises(CalibrationError, match="mid.conv: this range needs a histogram.*TimestepObserver"):
            choose_range(stats, method, 8)


def test_unknown_method():
    with pytest.raises(ConfigError, match="unknown range method 'median'.*minmax"):
        choose_range(record(normal(10)), "median", 8)  # type: ignore[arg-type]


def test_a_range_is_searched_once_for_one_record_and_again_for_another(monkeypatch):
    asked = []

    def counted(stats, bits, per_timestep, symmetric):
        asked.append((bits, per_timestep))
        return stats.min_val.min(), stats.max_val.max()

    monkeypatch.setattr("qdiff_fx.observers.ranges.range_method", lambda name: counted)
    one, other = record(normal(100)), record(normal(100, seed=1))
    first = choose_range(one, "counted", 8)
    first[0].fill_(0)  # whoever changes what they were given changes nothing
    assert choose_range(one, "counted", 8)[0] == one.min_val.min()
    assert len(asked) == 1
    choose_range(other, "counted", 8)
    choose_range(one, "counted", 4)
    choose_range(one, "counted", 8, per_timestep=True)
    assert len(asked) == 4
