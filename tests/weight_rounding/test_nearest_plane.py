"""Rounding with error feedback: what it minimises, and by how much."""

import itertools

import pytest
import torch

from qdiff_fx.errors import ConversionError
from qdiff_fx.passes.quantize.nearest import weight_scales
from qdiff_fx.quant.numerics import quantize, weight_range
from qdiff_fx.weight_rounding import nearest_plane
from qdiff_fx.weight_rounding.nearest_plane import BLOCK, factorise, feedback_codes, searched_codes
from qdiff_fx.weight_rounding.second_order import SCALE_RATIOS, second_order


def correlated(columns, rows=2000, seed=0):
    """A Hessian of inputs that depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    x = torch.randn(rows, columns, generator=generator) @ mixing + 0.3
    return x.T @ x / rows


def weights(rows, columns, seed=1):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def output_error(weight, codes, scales, hessian):
    off = weight - codes * scales[:, None]
    return ((off @ hessian) * off).sum(1)


def nearest(weight, scales, bits):
    return quantize(weight, scales, 0, *weight_range(bits), axis=0, dtype=torch.int8)


def test_the_factor_is_one_of_the_damped_hessian():
    hessian = correlated(40)
    factor = factorise(hessian.clone())
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(40)
    lower = factor.lower.tril()
    torch.testing.assert_close(lower @ lower.T, damped[factor.order][:, factor.order], rtol=1e-4, atol=1e-4)
    assert hessian.diagonal()[factor.order].diff().min() >= 0
    assert (factor.damping, factor.rows, factor.few_rows) == (0.01, 0, False)


@pytest.mark.parametrize("columns", [5, BLOCK, BLOCK + 3, 3 * BLOCK])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_error_it_reports_is_the_one_it_makes_and_below_that_of_nearest(columns, bits):
    weight, hessian = weights(6, columns), correlated(columns)
    scales = weight_scales(weight, bits)
    factor = factorise(hessian.clone())
    codes, error = feedback_codes(weight, scales, factor, *weight_range(bits))
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(columns)
    torch.testing.assert_close(output_error(weight, codes, scales, damped), error, rtol=2e-3, atol=1e-5)
    assert error.sum() < output_error(weight, nearest(weight, scales, bits), scales, damped).sum()


def test_inputs_that_know_nothing_of_each_other_are_rounded_to_nearest():
    weight, scales = weights(4, 30), weight_scales(weights(4, 30), 4)
    codes, _ = feedback_codes(weight, scales, factorise(torch.rand(30).add(1).diag()), *weight_range(4))
    torch.testing.assert_close(codes, nearest(weight, scales, 4), rtol=0, atol=0)


def test_close_to_the_best_of_all_codes():
    weight, hessian = weights(20, 4), correlated(4)
    scales = weight_scales(weight, 2)
    _, error = feedback_codes(weight, scales, factorise(hessian.clone()), *weight_range(2))
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(4)
    every = torch.tensor(list(itertools.product(range(-2, 2), repeat=4)))
    best = torch.stack([output_error(weight, codes.expand(20, 4), scales, damped) for codes in every]).amin(0)
    assert (error >= best * 0.999).all()
    assert error.sum() < best.sum() * 1.2


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_stay_in_range(bits):
    codes, _ = feedback_codes(
        weights(8, 200) * 5, torch.full((8,), 0.3), factorise(correlated(200)), *weight_range(bits)
    )
    low, high = weight_range(bits)
    assert codes.dtype == torch.int8
    assert low <= codes.min()
    assert codes.max() <= high


def test_scales_are_searched_per_channel():
    weight, hessian = weights(16, 60).view(16, 15, 2, 2), correlated(60)
    found = second_order(weight, 4, factorise(hessian.clone()), "mse")
    start = weight_scales(weight, 4, method="mse")
    codes, _ = feedback_codes(weight.flatten(1), start, factorise(hessian.clone()), *weight_range(4))
    assert found.codes.shape == weight.shape
    searched = output_error(weight.flatten(1), found.codes.flatten(1), found.scales, hessian).sum()
    assert searched < output_error(weight.flatten(1), codes, start, hessian).sum()
    assert (found.scales / start).unique().numel() > 1


def test_many_channels_are_the_same_as_few(monkeypatch):
    weight, factor = weights(10, 50), factorise(correlated(50))
    whole = second_order(weight, 4, factor, "max")
    monkeypatch.setattr("qdiff_fx.weight_rounding.second_order.CHUNK_ELEMENTS", 1000)
    parts = second_order(weight, 4, factor, "max")
    torch.testing.assert_close((parts.codes, parts.scales), (whole.codes, whole.scales), rtol=0, atol=0)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_scales_that_are_given_up_on_the_way_would_hardly_have_been_better(bits, monkeypatch):
    """Compared with trying all of them to the end; most channels take the same one."""
    weight, factor = weights(40, 9 * BLOCK), factorise(correlated(9 * BLOCK))
    scales = weight_scales(weight, bits, method="mse")[:, None] * torch.tensor(SCALE_RATIOS)
    few = searched_codes(weight, scales, factor, *weight_range(bits))
    monkeypatch.setattr(nearest_plane, "KEPT", {})
    every = searched_codes(weight, scales, factor, *weight_range(bits))
    assert every[1].sum() <= few[1].sum() <= every[1].sum() * 1.02
    assert (few[2] == every[2]).float().mean() > 0.6
    same = few[2] == every[2]
    assert torch.equal(few[0][same], every[0][same])


def test_the_best_of_some_scales_is_what_each_alone_would_give():
    weight, factor = weights(7, 300), factorise(correlated(300))
    scales = weight_scales(weight, 4)[:, None] * torch.tensor([0.7, 1.0, 0.9])
    codes, error, best = searched_codes(weight, scales, factor, *weight_range(4))
    alone = [feedback_codes(weight, each, factor, *weight_range(4)) for each in scales.T]
    errors = torch.stack([each[1] for each in alone], 1)
    torch.testing.assert_close(error, errors.amin(1), rtol=0, atol=0)
    assert torch.equal(best, scales.gather(1, errors.argmin(1, keepdim=True))[:, 0])
    for channel, index in enumerate(errors.argmin(1)):
        assert torch.equal(codes[channel], alone[index][0][channel])


def test_threads_do_not_change_codes():
    weight, hessian, before = weights(30, 9 * BLOCK), correlated(9 * BLOCK), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(second_order(weight, 4, factorise(hessian), "max"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0].codes, each.codes) for each in found)
    assert all(torch.equal(found[0].scales, each.scales) for each in found)


def test_of_few_rows_more_is_damped_and_said():
    columns = 200
    weight, scales = weights(30, columns), weight_scales(weights(30, columns), 4)
    apart = (torch.arange(columns)[:, None] - torch.arange(columns)).abs()
    truth = 0.9 ** apart.float()  # neighbours are alike
    lower = torch.linalg.cholesky(truth)
    x = torch.randn(50, columns, generator=torch.Generator().manual_seed(3)) @ lower.T
    seen = x.T @ x / 50
    told, untold = factorise(seen, rows=50), factorise(seen)
    assert (told.damping, untold.damping) == (0.2, 0.01)
    assert told.few_rows
    assert not factorise(seen, rows=columns).few_rows
    made, hasty = (feedback_codes(weight, scales, factor, *weight_range(4))[0] for factor in (told, untold))
    errors = [output_error(weight, codes, scales, truth).sum() for codes in (made, hasty, nearest(weight, scales, 4))]
    assert errors[0] < errors[1] < errors[2]


def test_what_the_first_damping_does_not_mend_gets_more():
    hessian = torch.eye(5)
    hessian[0, 1] = hessian[1, 0] = 1.05  # no second moment: rounding made it one that is not positive
    assert factorise(hessian).damping == 0.1


@pytest.mark.parametrize("hessian", [torch.zeros(6, 6), torch.ones(6, 6)], ids=["nothing seen", "one direction"])
def test_singular_hessians_are_damped(hessian):
    found = second_order(weights(3, 6), 4, factorise(hessian), "max")
    assert (found.codes - weights(3, 6) / found.scales[:, None]).abs().max() < 8


def test_what_is_not_finite_is_refused_by_name():
    with pytest.raises(ConversionError, match=r"mid\.conv"):
        factorise(torch.full((3, 3), torch.nan), where="mid.conv")
