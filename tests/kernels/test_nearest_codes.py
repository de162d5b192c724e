"""Weights as their nearest codes: the search that kernels make against trying every candidate."""

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples import examples
from qdiff_fx.errors import ConfigError, ConversionError, KernelError
from qdiff_fx.kernels.dispatch import status
from qdiff_fx.kernels.ops.nearest_codes import reference
from qdiff_fx.passes.quantize.nearest import nearest, weight_scales
from qdiff_fx.quant import weight_search
from qdiff_fx.quant.numerics import fake_quantize, quantize, weight_range

SEARCH = (80, 0.01, 2.4)  # candidates, how much smaller each is, the power
FIT = 1e-3  # of the polynomial for powers, on few weights


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rounding_error(w, scales, bits, p=2.4):
    zeros = torch.zeros_like(scales, dtype=torch.int64)
    return (fake_quantize(w, scales, zeros, *weight_range(bits), axis=0) - w).abs().double().pow(p).flatten(1).sum(1)


@st.composite
def rows(draw_from):
    """Gaussian, heavy-tailed, on a grid already, one-sided, with an outlier: [4, K]."""
    w = draw(4, draw_from(st.integers(1, 700)), seed=draw_from(st.integers(0, 2**31)))
    kind = draw_from(st.sampled_from(["normal", "heavy", "grid", "positive", "outlier", "constant"]))
    if kind == "outlier":
        w[:, 0] = 20.0
    made = {"heavy": w.pow(5), "grid": (w * 3).round() / 7, "positive": w.abs(), "constant": torch.ones_like(w)}
    return made.get(kind, w)


@given(rows(), st.integers(2, 8), st.sampled_from([1.0, 2.0, 2.4, 3.5]))
@examples(60)
def test_no_candidate_is_better_than_the_one_it_takes(w, bits, power):
    codes, scales = torch.ops.qdiff.nearest_codes(w, bits, 80, 0.01, power)
    unclipped = torch.ops.qdiff.nearest_codes(w, bits, 1, 0.01, power)[1]
    tried = torch.stack([rounding_error(w, unclipped * (1 - 0.01 * i), bits, power) for i in range(80)])
    found = rounding_error(w, scales, bits, power)
    assert bool((found <= tried.amin(dim=0) * (1 + FIT) + 1e-9 * w.abs().sum(dim=1)).all())
    assert torch.equal(codes, quantize(w, scales, 0, *weight_range(bits), axis=0, dtype=torch.int8))


@given(st.integers(0, 2**31), st.integers(2, 8), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
@examples(20)
def test_without_a_search_it_is_plain_torch_to_the_bit(seed, bits, dtype):
    w = draw(5, 37, seed=seed).to(dtype)
    for found, expected in zip(torch.ops.qdiff.nearest_codes(w, bits, 1, 0.5, 2.0), reference(w, bits, 1, 0.5, 2.0)):
        assert torch.equal(found, expected)


@pytest.mark.skipif(not status().available, reason="no compiled kernels")
def test_every_instruction_set_makes_the_same_of_it():
    """This file is run by each of them, see `test_integer.py`."""
    w = ((torch.arange(24 * 700) * 7919 % 10007 - 5003).float() / 5003).view(24, 700).pow(3)
    digest = hashlib.sha256()
    for bits in range(2, 9):
        codes, scales = torch.ops.qdiff.nearest_codes(w, bits, *SEARCH)
        digest.update(codes.numpy().tobytes() + scales.numpy().tobytes())
    assert digest.hexdigest()[:16] == "2ed7d8782d235f91"


def test_rows_do_not_depend_on_those_beside_them_or_on_threads():
    w = draw(33, 130)
    codes, scales = torch.ops.qdiff.nearest_codes(w, 4, *SEARCH)
    for row in range(0, 33, 8):
        alone = torch.ops.qdiff.nearest_codes(w[row : row + 1], 4, *SEARCH)
        assert torch.equal(alone[0][0], codes[row])
        assert torch.equal(alone[1][0], scales[row])


@pytest.mark.parametrize("implementation", [reference, torch.ops.qdiff.nearest_codes])
def test_rows_of_zeros_and_rows_that_are_not_finite(implementation):
    w = draw(4, 20)
    w[0] = 0
    w[1, 7], w[2, 19] = torch.nan, -torch.inf
    scales = implementation(w, 4, *SEARCH)[1]
    assert scales[0] == 1
    assert scales.isnan().tolist() == [False, True, True, False]


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
@pytest.mark.parametrize("implementation", [reference, torch.ops.qdiff.nearest_codes])
def test_nothing_to_round(implementation, shape):
    codes, scales = implementation(torch.zeros(shape), 4, *SEARCH)
    assert codes.shape == shape
    assert scales.tolist() == [1.0] * shape[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((torch.zeros(3), 4, *SEARCH), "rows of numbers"),
        ((torch.zeros(3, 3, dtype=torch.int8), 4, *SEARCH), "weight must be float32"),
        ((torch.zeros(3, 3), 9, *SEARCH), "bits must be 2..8"),
        ((torch.zeros(3, 3), 4, 101, 0.01, 2.4), "cannot shrink"),
        ((torch.zeros(3, 3), 4, 80, float("nan"), 2.4), "cannot shrink"),
        ((torch.zeros(3, 3), 4, 0, 0.01, 2.4), "candidates must be"),
        ((torch.zeros(3, 3), 4, 80, 0.01, 0.5), "power must be 1..8"),
    ],
)
@pytest.mark.parametrize("implementation", [reference, torch.ops.qdiff.nearest_codes])
def test_refusals(implementation, arguments, says):
    with pytest.raises((KernelError, RuntimeError), match=says):
        implementation(*arguments)


class TestPlainTorch:
    @given(st.integers(0, 2**31), st.integers(2, 8))
    @examples(10)
    def test_equals_trying_every_candidate(self, seed, bits):
        w = draw(6, 27, seed=seed).pow(3)
        _, scales = reference(w, bits, *SEARCH)
        tried = [rounding_error(w, weight_scales(w, bits) * (1 - 0.01 * i), bits) for i in range(80)]
        expected = torch.stack(tried).amin(dim=0)
        torch.testing.assert_close(rounding_error(w, scales, bits), expected, rtol=1e-4, atol=0)

    def test_does_not_depend_on_how_the_channels_are_cut_up(self, monkeypatch):
        w = draw(13, 70)
        whole = weight_search.search_scales(w, 4, *SEARCH)
        monkeypatch.setattr(weight_search, "CHUNK_ELEMENTS", 150)
        assert torch.equal(whole, weight_search.search_scales(w, 4, *SEARCH))

    def test_never_holds_more_than_a_few_channels_of_temporaries(self, monkeypatch):
        sizes: list[int] = []
        search = weight_search._search_scale

        def watched(channels, **options):
            sizes.append(channels.numel())
            return search(channels, **options)

        monkeypatch.setattr(weight_search, "_search_scale", watched)
        weight_search.search_scales(draw(64, 3000), 4, 2, 0.01, 2.4)
        assert max(sizes) <= weight_search.CHUNK_ELEMENTS


class TestWeightScales:
    @given(st.integers(0, 2**31), st.integers(2, 8), st.integers(1, 40))
    @examples(25)
    def test_max_covers_every_weight_and_uses_the_last_code(self, seed, bits, inputs):
        w = draw(5, inputs, seed=seed)
        scales = weight_scales(w, bits)
        assert bool((rounding_error(w, scales, bits, p=1) <= inputs * 0.501 * scales).all())
        qmin, qmax = weight_range(bits)
        codes = torch.round(w / scales[:, None])
        assert bool(((codes == qmin) | (codes == qmax)).any(dim=1).all())

    def test_search_helps_most_where_outliers_stretch_the_range(self):
        w = draw(2, 2000)
        w[1, 0] = 20.0
        gain = rounding_error(w, weight_scales(w, 4), 4) / rounding_error(w, weight_scales(w, 4, method="mse"), 4)
        assert gain[1] > gain[0] > 1

    @pytest.mark.parametrize("method", ["max", "mse"])
    def test_axis_names_the_output_channels(self, method):
        w = draw(4, 6, 3, 3)
        expected = weight_scales(w.transpose(0, 1), 4, method=method)
        assert torch.equal(weight_scales(w, 4, axis=1, method=method), expected)
        found = nearest(w, 4, 1, method)
        assert torch.equal(found.codes, quantize(w, expected, 0, *weight_range(4), axis=1, dtype=torch.int8))
        assert torch.equal(found.scales, expected)

    @pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12, 1e30])
    def test_scales_with_the_weight(self, factor):
        w = draw(4, 100)
        unit = weight_scales(w, 4, method="mse")
        torch.testing.assert_close(weight_scales(w * factor, 4, method="mse") / factor, unit, rtol=1e-4, atol=0)

    @pytest.mark.parametrize("method", ["max", "mse"])
    def test_zero_channel_and_half_precision(self, method):
        w = draw(3, 50).bfloat16()
        w[1] = 0
        scales = weight_scales(w.requires_grad_(), 4, method=method)
        assert scales.dtype == torch.float32
        assert not scales.requires_grad
        assert scales[1] == 1

    def test_refusals(self):
        with pytest.raises(ConversionError, match="NaN or infinity"):
            weight_scales(torch.tensor([[1.0, float("nan")]]), 8)
        with pytest.raises(ConfigError, match="unknown method"):
            weight_scales(torch.ones(2, 2), 8, method="median")  # type: ignore[arg-type]
