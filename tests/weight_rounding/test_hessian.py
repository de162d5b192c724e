"""Hessians are those of the rows a layer multiplies its weight with."""

import pytest
import torch
import torch.nn.functional as F

from qdiff_fx.weight_rounding import hessian as module
from qdiff_fx.weight_rounding.hessian import Hessian

X = torch.randn(2, 5, 9, 8, generator=torch.Generator().manual_seed(0))


def gathered(hessian, *inputs):
    hessian.start()
    for x in inputs:
        hessian(x)
    return hessian.stop()


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [([3, 3], [1, 1], [1, 1], [1, 1]), ([1, 1], [1, 1], [0, 0], [1, 1]), ([3, 2], [2, 1], [1, 0], [1, 2])],
)
def test_convolutions_are_unfolded_as_their_weight_is(kernel, stride, padding, dilation, monkeypatch):
    monkeypatch.setattr(module, "POSITIONS_PER_SAMPLE", 1000)
    columns = 5 * kernel[0] * kernel[1]
    rows = F.unfold(X, kernel, dilation, padding, stride).transpose(1, 2).flatten(0, 1)
    found = gathered(Hessian(columns, (kernel, stride, padding, dilation)), X)
    torch.testing.assert_close(found, rows.T @ rows, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", [(6, 4), (3, 2, 4), (1, 3, 2, 4)])
def test_linear_layers_read_their_last_dimension(shape):
    x = torch.randn(shape)
    torch.testing.assert_close(gathered(Hessian(4, None), x), x.reshape(-1, 4).T @ x.reshape(-1, 4))


def test_batches_add_up_and_starting_forgets():
    hessian, x = Hessian(4, None), torch.randn(6, 4)
    torch.testing.assert_close(gathered(hessian, x[:2], x[2:]), gathered(hessian, x))


def test_only_while_open():
    hessian = Hessian(4, None)
    hessian(torch.ones(3, 4))
    assert hessian.total.numel() == 0
    hessian.start()
    assert hessian.stop().abs().sum() == 0
    hessian(torch.ones(3, 4))
    assert hessian.total.numel() == 0


def test_blocks_make_the_whole_symmetric_hessian(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 3)
    x = torch.randn(20, 8)
    torch.testing.assert_close(gathered(Hessian(8, None), x), x.T @ x)


def test_of_large_images_some_positions_are_read_others_in_the_next_batch(monkeypatch):
    monkeypatch.setattr(module, "POSITIONS_PER_SAMPLE", 10)
    window = ([1, 1], [1, 1], [0, 0], [1, 1])
    image = torch.arange(72.0).view(1, 1, 9, 8)
    first, both = (gathered(Hessian(1, window), *[image] * times) for times in (1, 2))
    assert 0 < first < image.square().sum()
    assert both != 2 * first
    assert first == gathered(Hessian(1, window), image)
