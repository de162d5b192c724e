"""3x3 convolutions with a quarter of the multiplications: to the bit what the direct kernel makes of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from kernel_calls import MOST, Call, convolution_at_the_bound, plain_convolution, small_convolutions
from torch import Tensor

from examples import examples
from qdiff_fx.kernels import status

pytestmark = pytest.mark.skipif(not status().available, reason=status().reason or "-")
ops = torch.ops.qdiff


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    ops.set_convolution_algorithm("cheapest")


def both(call: Call) -> tuple[Tensor, Tensor]:
    """The convolution computed directly, and by Winograd's algorithm."""
    made = []
    for name in ("direct", "winograd"):
        ops.set_convolution_algorithm(name)
        made.append(call.run())
    return made[0], made[1]


def both_on(threads: int, call: Call) -> tuple[Tensor, Tensor]:
    """The same on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return both(call)
    finally:
        torch.set_num_threads(before)


@given(small_convolutions())
@examples(60)
def test_it_equals_the_direct_convolution(call):
    """Sources, bits, padding, upsampling, layouts, and all that may follow the sum."""
    direct, winograd = both(call)
    assert torch.equal(direct, winograd)


@pytest.mark.parametrize("over", [-1, 0, 1])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_sum_that_one_part_holds_and_what_is_above(sign, over):
    """Channels whose weights' magnitudes add up to the bound, one less and one more, at codes that reach it."""
    for code in (0, 255):
        direct, winograd = both(convolution_at_the_bound(over, sign, code))
        assert torch.equal(direct, winograd)
        assert winograd.abs().max() == abs(code - 128) * (MOST + over)


def test_sums_of_many_parts():
    """Every product at its limit, in channels that need several parts."""
    for value, code in ((-128, 0), (-128, 255), (127, 0), (127, 255)):
        weight = torch.full((70, 700, 3, 3), value, dtype=torch.int8)
        codes = torch.full((1, 700, 5, 6), code, dtype=torch.uint8)
        direct, winograd = both(plain_convolution(codes, weight))
        assert torch.equal(direct, winograd)
        assert winograd[0, 0, 2, 2] == float(700 * 9 * value * code)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_any_number_of_threads(threads):
    codes = torch.randint(0, 256, (2, 40, 13, 20), dtype=torch.uint8)
    call = plain_convolution(codes, torch.randint(-128, 128, (150, 40, 3, 3), dtype=torch.int8))
    direct, winograd = both_on(threads, call)
    assert torch.equal(direct, winograd)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(58, 61), (120, 40)])
def test_few_channels_of_large_images(height, width, threads):
    """Several chunks of tiles, of which the last is not whole, nor are the last tiles."""
    codes = torch.randint(0, 256, (2, 70, height, width), dtype=torch.uint8).contiguous(
        memory_format=torch.channels_last
    )
    call = plain_convolution(codes, torch.randint(-128, 128, (33, 70, 3, 3), dtype=torch.int8))
    direct, winograd = both_on(threads, call)
    assert torch.equal(direct, winograd)


def test_many_chunks_and_blocks():
    codes = torch.randint(0, 256, (1, 300, 82, 78), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    direct, winograd = both(plain_convolution(codes, torch.randint(-128, 128, (16, 300, 3, 3), dtype=torch.int8)))
    assert torch.equal(direct, winograd)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_weights_made_before_the_tasks(threads):
    """So many chunks of tiles that all share them: two sources, of bytes and of nibbles, one of several blocks, and a
    last panel of one vector."""
    one = [torch.randint(0, 256, (1, channels, 131, 135), dtype=torch.uint8) for channels in (70, 21)]
    weights = [torch.randint(-8, 8, (130, codes.shape[1], 3, 3), dtype=torch.int8) for codes in one]
    call = plain_convolution(one[0].contiguous(memory_format=torch.channels_last), weights[0], zero_point=117)
    call.arguments.update(codes=one, weights=weights, bits=[8, 4], scales=[1.0, 0.5], zero_points=[117, 3])
    call.arguments.update(weight_scales=[torch.rand(130), torch.rand(130)])
    direct, winograd = both_on(threads, call)
    assert torch.equal(direct, winograd)


@pytest.mark.parametrize("size", [8, 13])
def test_a_task_of_several_panels(size):
    """Few tiles, so a task has several panels of output channels, of which the last group has fewer."""
    codes = torch.randint(0, 256, (1, 300, size, size), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    direct, winograd = both(plain_convolution(codes, torch.randint(-128, 128, (600, 300, 3, 3), dtype=torch.int8)))
    assert torch.equal(direct, winograd)


def test_it_is_what_plain_torch_makes_of_it():
    codes = torch.randint(0, 256, (2, 40, 9, 7), dtype=torch.uint8)
    weight = torch.randint(-128, 128, (33, 40, 3, 3), dtype=torch.int8)
    call = plain_convolution(codes, weight, zero_point=7)
    assert torch.equal(both(call)[1], call.reference())


def test_the_cheapest_way_is_taken_by_itself():
    """And it gives what either way gives."""
    codes = torch.randint(0, 256, (2, 64, 24, 24), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    weight = torch.randint(-128, 128, (64, 64, 3, 3), dtype=torch.int8)
    direct, _ = both(plain_convolution(codes, weight))
    ops.set_convolution_algorithm("cheapest")
    assert torch.equal(plain_convolution(codes, weight).run(), direct)


def test_other_convolutions_stay_direct():
    """Strides, dilations and other windows are no less right when the algorithm is asked for."""
    codes = torch.randint(0, 256, (1, 8, 12, 12), dtype=torch.uint8)
    for kernel, stride, dilation in (((3, 3), [2, 2], [1, 1]), ((3, 3), [1, 1], [2, 2]), ((1, 3), [1, 1], [1, 1])):
        weight = torch.randint(-128, 128, (16, 8, *kernel), dtype=torch.int8)
        call = plain_convolution(codes, weight)
        call.arguments.update(kernel=kernel, stride=stride, dilation=dilation)
        direct, winograd = both(call)
        assert torch.equal(direct, winograd)


def test_an_algorithm_that_there_is_not():
    with pytest.raises(RuntimeError, match="cheapest, direct or winograd, not fastest"):
        ops.set_convolution_algorithm("fastest")
