import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.ao.quantization.fx import _decomposed  # noqa: F401  (registers quantized_decomposed)

from qdiff_fx.errors import CalibrationError, ConfigError, ConversionError
from qdiff_fx.quant.numerics import (
    choose_qparams,
    dequantize,
    fake_quantize,
    integer_range,
    quantize,
    sqnr_db,
    weight_range,
)
from qdiff_fx.quant.parameters import WeightParameters

qd = torch.ops.quantized_decomposed

reasonable = st.floats(-(2.0**100), 2.0**100, width=32)
bits_of_activations = st.integers(2, 8)


@pytest.mark.parametrize(
    ("bits", "signed", "expected"),
    [(2, True, (-2, 1)), (4, True, (-8, 7)), (4, False, (0, 15)), (8, False, (0, 255)), (16, True, (-32768, 32767))],
)
def test_integer_range(bits, signed, expected):
    assert integer_range(bits, signed=signed) == expected


@pytest.mark.parametrize("bits", [0, 1, 17, 8.0, True, None])
def test_integer_range_refuses_other_bits(bits):
    with pytest.raises(ConfigError, match="unsupported bits"):
        integer_range(bits, signed=True)


def test_weight_range_uses_every_code_below_eight_bits_only():
    assert weight_range(4) == (-8, 7)
    assert weight_range(8) == (-127, 127)


class TestChooseQParams:
    @given(reasonable, reasonable, bits_of_activations, st.booleans(), st.booleans(), st.floats(0, 1))
    def test_everything_in_the_range_is_within_half_a_step(self, a, b, bits, symmetric, signed, where):
        lo, hi = min(a, b), max(a, b)
        scale, zero_point = choose_qparams(lo, hi, bits, symmetric=symmetric, signed=signed)
        x = torch.tensor([lo, lo + where * (hi - lo), hi], dtype=torch.float32)
        error = (fake_quantize(x, scale, zero_point, *integer_range(bits, signed=signed)) - x).abs()
        assert bool((error <= 0.501 * scale).all())

    @given(reasonable, reasonable, bits_of_activations, st.booleans(), st.booleans())
    def test_zero_is_exact_and_parameters_are_valid(self, a, b, bits, symmetric, signed):
        scale, zero_point = choose_qparams(min(a, b), max(a, b), bits, symmetric=symmetric, signed=signed)
        qmin, qmax = integer_range(bits, signed=signed)
        assert scale.dtype == torch.float32
        assert zero_point.dtype == torch.int64
        assert scale > 0
        assert torch.isfinite(1 / scale)
        assert qmin <= zero_point <= qmax
        assert fake_quantize(torch.zeros(1), scale, zero_point, qmin, qmax) == 0

    @given(reasonable, reasonable, st.integers(2, 15))
    def test_more_bits_never_mean_a_coarser_step(self, a, b, bits):
        lo, hi = min(a, b), max(a, b)
        for symmetric in (False, True):
            fewer, _ = choose_qparams(lo, hi, bits, symmetric=symmetric, signed=True)
            more, _ = choose_qparams(lo, hi, bits + 1, symmetric=symmetric, signed=True)
            assert more <= fewer

    def test_known_values(self):
        scale, zero_point = choose_qparams(-1.0, 3.0, 8, symmetric=False, signed=False)
        assert float(scale) == pytest.approx(4 / 255)
        assert int(zero_point) == 64
        scale, zero_point = choose_qparams(-1.0, 3.0, 8, symmetric=True, signed=True)
        assert float(scale) == pytest.approx(3 / 127)
        assert int(zero_point) == 0
        _, zero_point = choose_qparams(-1.0, 3.0, 8, symmetric=True, signed=False)
        assert int(zero_point) == 128

    def test_elementwise_on_tables(self):
        lo, hi = torch.tensor([[-1.0, 0.5], [0.0, -2.0]]), torch.tensor([[2.0, 2.0], [0.0, -1.0]])
        scale, zero_point = choose_qparams(lo, hi, 8, symmetric=False, signed=False)
        assert scale.shape == zero_point.shape == (2, 2)
        assert scale[0, 1] == pytest.approx(2 / 255)  # the range is widened to include 0
        assert zero_point.tolist() == [[85, 0], [0, 255]]
        assert scale[1, 0] == 1  # the empty range

    def test_widest_range_does_not_overflow(self):
        largest = torch.finfo(torch.float32).max
        scale, _ = choose_qparams(-largest, largest, 8, symmetric=False, signed=False)
        assert torch.isfinite(scale)

    @pytest.mark.parametrize(("lo", "hi"), [(float("nan"), 1.0), (0.0, float("inf")), (float("inf"), float("-inf"))])
    def test_refuses_non_finite_ranges(self, lo, hi):
        with pytest.raises(CalibrationError, match="not finite"):
            choose_qparams(lo, hi, 8, symmetric=False, signed=False)

    def test_refuses_reversed_ranges(self):
        with pytest.raises(CalibrationError, match="lo 2 is above hi 1"):
            choose_qparams(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0]), 8, symmetric=False, signed=False)

    @pytest.mark.parametrize(("low", "high", "expected"), [(-1.0, 1.1, 121), (-1.0, 1.2, 116), (-0.3, 7.0, 10)])
    def test_the_zero_point_is_the_nearest_code(self, low, high, expected):
        _, zero_point = choose_qparams(low, high, 8, symmetric=False, signed=False)
        assert int(zero_point) == expected == round(-low / (high - low) * 255)


class TestQuantize:
    @given(st.integers(0, 2**31), st.floats(2**-20, 2**10, width=32), st.integers(0, 255), st.booleans())
    def test_equals_the_operator_per_tensor(self, seed, scale, zero_point, half):
        x = torch.randn(257, generator=torch.Generator().manual_seed(seed)) * scale * 100
        x = x.half().clamp(-6e4, 6e4) if half else x
        args = (0, 255)
        codes = quantize(x, torch.tensor(scale), torch.tensor(zero_point), *args, dtype=torch.uint8)
        assert torch.equal(codes, qd.quantize_per_tensor(x, scale, zero_point, *args, torch.uint8))
        assert torch.equal(codes, quantize(x, scale, zero_point, *args, dtype=torch.uint8))
        values = dequantize(codes, torch.tensor(scale), torch.tensor(zero_point))
        assert torch.equal(values, qd.dequantize_per_tensor(codes, scale, zero_point, *args, torch.uint8))
        assert torch.equal(values, fake_quantize(x, torch.tensor(scale), torch.tensor(zero_point), *args))

    @given(st.integers(0, 2**31), st.integers(0, 2), st.integers(2, 8))
    def test_equals_the_operator_per_channel(self, seed, axis, bits):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(3, 4, 5, generator=generator)
        scale = torch.rand(x.shape[axis], generator=generator) + 1e-3
        zero_point = torch.randint(-3, 4, (x.shape[axis],), generator=generator)
        qmin, qmax = integer_range(bits, signed=True)
        codes = quantize(x, scale, zero_point, qmin, qmax, axis=axis, dtype=torch.int8)
        assert torch.equal(codes, qd.quantize_per_channel(x, scale, zero_point, axis, qmin, qmax, torch.int8))
        values = dequantize(codes, scale, zero_point, axis=axis)
        expected = qd.dequantize_per_channel(codes, scale, zero_point, axis, qmin, qmax, torch.int8)
        assert torch.equal(values, expected)
        assert torch.equal(values, fake_quantize(x, scale, zero_point, qmin, qmax, axis=axis))

    def test_ties_go_to_even_codes(self):
        codes = quantize(torch.tensor([0.5, 1.5, 2.5, -0.5]), 1.0, 0, -8, 7, dtype=torch.int8)
        assert codes.tolist() == [0, 2, 2, 0]

    def test_quantizing_twice_changes_nothing(self):
        x = torch.linspace(-3, 5, 1001)
        scale, zero_point = choose_qparams(-1.0, 3.0, 4, symmetric=False, signed=False)
        once = fake_quantize(x, scale, zero_point, 0, 15)
        assert torch.equal(once, fake_quantize(once, scale, zero_point, 0, 15))

    def test_refuses_a_dtype_that_is_too_small(self):
        with pytest.raises(ConfigError, match="cannot hold codes"):
            quantize(torch.zeros(1), 1.0, 0, 0, 65535, dtype=torch.uint8)


class TestSqnr:
    def test_known_ratio(self):
        reference = torch.ones(1000)
        assert sqnr_db(reference, reference + 0.1) == pytest.approx(20, abs=1e-4)

    def test_equal_tensors_have_no_noise(self):
        assert sqnr_db(torch.zeros(3), torch.zeros(3)) == float("inf")

    def test_each_bit_is_worth_six_decibels(self):
        x = torch.rand(20_000, generator=torch.Generator().manual_seed(0)) * 2 - 1

        def at(bits):
            scale, zero_point = choose_qparams(-1.0, 1.0, bits, symmetric=False, signed=False)
            return sqnr_db(x, fake_quantize(x, scale, zero_point, *integer_range(bits, signed=False)))

        assert at(8) - at(4) == pytest.approx(4 * 6.02, abs=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": torch.zeros(2, 3)}, "are no weight"),
        ({"scales": torch.ones(3)}, "are no weight"),
        ({"axis": 2}, "are no weight"),
        ({"codes": torch.full((2, 3), 8, dtype=torch.int8), "bits": 4}, "codes of 4 bits"),
        ({"scales": torch.tensor([1.0, 0.0])}, "no.*positive|not a positive"),
        ({"bias": torch.zeros(3)}, "does not fit 2 output channels"),
    ],
)
def test_parameters_that_do_not_fit_each_other_are_no_weight(change, message):
    fitting = {"codes": torch.zeros(2, 3, dtype=torch.int8), "scales": torch.ones(2), "bits": 8}
    WeightParameters(**fitting)
    with pytest.raises(ConversionError, match=message):
        WeightParameters(**(fitting | change))
