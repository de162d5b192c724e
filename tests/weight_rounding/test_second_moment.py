"""Second moments are those of the rows a layer multiplies its weight with, to the bit, in whatever order they come."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from examples import examples
from qdiff_fx.errors import CalibrationError
from qdiff_fx.weight_rounding import second_moment
from qdiff_fx.weight_rounding.positions import positions_of
from qdiff_fx.weight_rounding.second_moment import SecondMoment, Window, common_grid

EVERY = 10**6  # positions: all there are


def codes(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def moment_of(x):
    rows = x.double()
    return (rows.T @ rows / len(rows)).float()


@given(
    st.tuples(*[st.integers(1, 3)] * 2),
    st.tuples(*[st.integers(1, 2)] * 2),
    st.tuples(*[st.integers(0, 2)] * 2),
    st.tuples(*[st.integers(1, 2)] * 2),
    st.integers(0, 255),
)
@examples(30)
def test_convolutions_are_unfolded_as_their_weight_is(kernel, stride, padding, dilation, zero_point):
    window, scale = Window(kernel, stride, padding, dilation), 0.03
    x = codes(2, 5, 9, 8)
    values = (x.double() - zero_point) * scale
    rows = F.unfold(values, kernel, dilation, padding, stride).transpose(1, 2).flatten(0, 1)
    found = SecondMoment(5 * kernel[0] * kernel[1], window, zero_point, scale, positions=EVERY)
    found.add(x, [0, 1])
    assert found.count == len(rows)
    torch.testing.assert_close(found.hessian(), moment_of(rows), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(6, 4), (3, 2, 4), (1, 3, 2, 4)])
def test_linear_layers_read_their_last_dimension(shape):
    x, found = codes(*shape), SecondMoment(4, None, 100, 0.5)
    found.add(x, range(shape[0]))
    torch.testing.assert_close(found.hessian(), moment_of((x.double() - 100).reshape(-1, 4) * 0.5), rtol=1e-6, atol=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_neither_batches_nor_order_nor_processes_change_a_bit(layout, monkeypatch):
    x, window = codes(8, 3, 12, 10).contiguous(memory_format=layout), Window((3, 3), padding=(1, 1))
    whole, parts, others = (SecondMoment(27, window, 77, 0.01, positions=20) for _ in range(3))
    whole.add(x, range(100, 108))
    monkeypatch.setattr(second_moment, "BUFFERED", 50)
    for row in (5, 2, 7, 0):
        parts.add(x[row : row + 1], [100 + row])
    others.add(x[[1, 3]], [101, 103])
    others.add(x[[6, 4]], [106, 104])
    parts.merge(others)
    assert torch.equal(parts.hessian(), whole.hessian())
    assert (parts.count, parts.rows) == (whole.count, whole.rows) == (160, 8)


def test_codes_of_other_quantizers_are_brought_to_one_grid():
    zero_points, scales = [10, 200], [0.02, 0.03]
    zero_point, scale = common_grid(zero_points, scales)
    found = SecondMoment(4, None, zero_point, scale, positions=EVERY)
    values = []
    for bin, (of_codes, by) in enumerate(zip(zero_points, scales, strict=True)):
        x = codes(1, 500, 4, seed=bin)
        found.add(x, [bin], zero_point=of_codes, scale=by)
        values.append((x[0].double() - of_codes) * by)
    expected = moment_of(torch.cat(values))
    torch.testing.assert_close(found.hessian(), expected, rtol=1e-2, atol=1e-2 * float(expected.max()))
    assert common_grid([7, 7], [0.1, 0.1]) == (7, 0.1)


def test_padding_is_zero_whatever_the_quantizer():
    x, window = torch.full((1, 1, 1, 1), 10, dtype=torch.uint8), Window((3, 3), padding=(1, 1))
    found = SecondMoment(9, window, 128, 1.0)
    found.add(x, [0], zero_point=0, scale=0.5)
    expected = torch.zeros(9, 9)
    expected[4, 4] = 25.0
    assert torch.equal(found.hessian(), expected)


def test_the_last_time_it_is_made_where_the_total_was():
    found = SecondMoment(40, None, 100, 0.5)
    found.add(codes(60, 40), range(60))
    kept = found.hessian()
    memory = found.total.data_ptr()
    last = found.hessian(last=True)
    assert torch.equal(last, kept)
    assert last.data_ptr() == memory
    assert (found.total.numel(), found.count) == (0, 60)


def test_of_large_images_some_positions_are_read():
    x, found = codes(3, 2, 16, 16), SecondMoment(2, Window((1, 1)), 0, 1.0, positions=10)
    found.add(x, [4, 5, 6])
    picked = x.flatten(2).transpose(1, 2)[torch.arange(3)[:, None], positions_of([4, 5, 6], 256, 10)]
    assert found.count == 30
    torch.testing.assert_close(found.hessian(), moment_of(picked.flatten(0, 1)))


class TestPositions:
    @given(st.lists(st.integers(0, 2**40), max_size=4), st.integers(0, 5000), st.integers(1, 300))
    @examples(40)
    def test_they_depend_on_the_row_alone_and_are_different_ones_of_those_there_are(self, rows, count, budget):
        found = positions_of(rows, count, budget)
        assert found.shape == (len(rows), min(count, budget))
        assert not len(rows) or torch.equal(found, torch.cat([positions_of([row], count, budget) for row in rows]))
        assert (found.diff(dim=1) > 0).all()
        assert ((found >= 0) & (found < count)).all()

    @pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 80), (16, 16), (8, 96)])
    def test_lines_and_columns_are_met_evenly(self, height, width):
        """Quarters of the image, either way, have a fair share of each row's positions, and of those of many rows."""
        found = positions_of(range(16), height * width, 64)
        for places, size in ((found // width, height), (found % width, width)):
            share = torch.stack([(places * 4 // size == quarter).float().mean(1) for quarter in range(4)])
            assert (share.mean(1) - 0.25).abs().max() < 0.02
            assert (share - 0.25).abs().max() < 0.12

    def test_rows_look_at_others_until_all_were_seen(self):
        assert positions_of(range(200), 256, 16).unique().numel() == 256


class TestRefusals:
    def moment(self):
        return SecondMoment(18, Window((3, 3)), 0, 1.0)

    @pytest.mark.parametrize(
        "x", [codes(1, 3, 5, 5), codes(1, 2, 2, 2), codes(2, 2, 5, 5), codes(1, 2, 5), codes(1, 2, 5, 5).to(torch.int8)]
    )
    def test_codes_of_another_layer(self, x):
        with pytest.raises(CalibrationError, match="are not what 18 columns are made of"):
            self.moment().add(x, [0])

    def test_more_than_32_bits_hold(self, monkeypatch):
        monkeypatch.setattr(second_moment, "MOST_ROWS", 20)
        found, more = self.moment(), self.moment()
        found.add(codes(1, 2, 6, 5), [0])
        more.add(codes(1, 2, 6, 5), [1])
        with pytest.raises(CalibrationError, match="24 positions may add up to more than 32 bits"):
            found.add(codes(1, 2, 6, 5), [1])
        assert found.count == 12
        with pytest.raises(CalibrationError, match="both have more than 20"):
            found.merge(more)

    def test_another_layer_and_nothing_at_all(self):
        with pytest.raises(CalibrationError, match="different layers"):
            self.moment().merge(SecondMoment(18, Window((3, 3)), 1, 1.0))
        with pytest.raises(CalibrationError, match="no rows came"):
            self.moment().hessian()
