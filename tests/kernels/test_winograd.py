"""3x3 convolutions with a quarter of the multiplications: to the bit what the direct kernel makes of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from examples import examples
from qdiff_fx.kernels import status
from qdiff_fx.kernels.activations import Activation
from qdiff_fx.kernels.ops import int_conv, pack_weight

pytestmark = pytest.mark.skipif(not status().available, reason=status().reason or "-")
ops = torch.ops.qdiff

MOST = 2**25 // 128  # weights of one output channel whose magnitudes add up to less are summed in one part


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    ops.set_convolution_algorithm("cheapest")


def operands(weights: list[Tensor], bits: list[int]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Packed weights, scales and sums."""
    packs = [ops.pack_weight(weight, each) for weight, each in zip(weights, bits, strict=True)]
    scales = []
    for weight, (_, sums) in zip(weights, packs, strict=True):
        scales.append(torch.zeros(sums.numel()))
        scales[-1][: len(weight)] = torch.rand(len(weight)) / 100 + 0.001
    return [p[0] for p in packs], scales, [p[1] for p in packs]


def both(*arguments: object) -> tuple[Tensor, Tensor]:
    """The convolution computed directly, and by Winograd's algorithm."""
    made = []
    for name in ("direct", "winograd"):
        ops.set_convolution_algorithm(name)
        made.append(ops.int_conv(*arguments))
    return made[0], made[1]


@given(st.data())
@examples(60)
def test_it_equals_the_direct_convolution(data):
    """Sources, bits, padding, upsampling, layouts, and all that may follow the sum."""
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 10_000)))
    batch, outputs = draw(st.integers(1, 3)), draw(st.sampled_from([1, 5, 16, 17, 32, 48, 64, 65, 130]))
    size, factor = [draw(st.integers(1, 13)) for _ in range(2)], draw(st.sampled_from([(1, 1), (2, 1), (2, 2)]))
    padding = draw(st.tuples(*[st.integers(1, 2)] * 4))
    codes, weights, bits = [], [], []
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        channels = draw(st.sampled_from([1, 3, 4, 20, 32, 64, 65, 100, 200, 300]))
        bits.append(draw(st.sampled_from([8, 8, 6, 4, 3])))
        limit = 2 ** (bits[-1] - 1)
        x = torch.randint(0, 256, (batch, channels, *size), dtype=torch.uint8)
        weight = torch.randint(-limit, limit, (outputs, channels, 3, 3))
        if draw(st.booleans()):  # the ends of both ranges only
            x = (x > 127).to(torch.uint8) * 255
            weight = torch.where(weight >= draw(st.sampled_from([-limit, 0, limit])), limit - 1, -limit)
        wide = draw(st.booleans())
        codes.append(x.contiguous(memory_format=torch.channels_last) if wide else x)
        weights.append(weight.to(torch.int8))
    zero_points = [draw(st.integers(0, 255)) for _ in codes]
    bias = torch.randn(outputs) if draw(st.booleans()) else None
    shift = torch.randn(draw(st.sampled_from([1, batch])), outputs) if draw(st.booleans()) else None
    out = [size[0] * factor[0] + sum(padding[:2]) - 2, size[1] * factor[1] + sum(padding[2:]) - 2]
    residual = torch.randn(batch, outputs, *out) if draw(st.booleans()) else None
    activation = draw(st.sampled_from([a for a in Activation if a != Activation.GEGLU]))
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.uint8]))
    quantizer = (3.0, 100, 0, 255) if dtype == torch.uint8 else (1.0, 0, 0, 0)
    direct, winograd = both(
        *(codes, [0.02] * len(codes), zero_points, *operands(weights, bits), outputs),
        *([3, 3], [1, 1], padding, [1, 1], factor, bias, shift, residual, int(activation), dtype, *quantizer),
    )
    assert torch.equal(direct, winograd)


def plain(codes: Tensor, weight: Tensor, zero_point: int = 0) -> list[object]:
    packed, scales, sums = operands([weight], [8])
    window = ([3, 3], [1, 1], [1, 1, 1, 1], [1, 1], [1, 1])
    return [
        *([codes], [1.0], [zero_point], packed, [torch.ones_like(scales[0])], sums, len(weight), *window),
        *(None, None, None, 0, torch.float32, 1.0, 0, 0, 0),
    ]


@pytest.mark.parametrize("over", [-1, 0, 1])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_sum_that_one_part_holds_and_what_is_above(sign, over):
    """Channels whose weights' magnitudes add up to the bound, one less and one more, at codes that reach it."""
    magnitudes = torch.zeros(1, 240, 9)
    magnitudes.view(-1)[: (MOST + over) // 127] = 127
    magnitudes.view(-1)[-1] = (MOST + over) % 127
    assert magnitudes.sum() == MOST + over
    weight = (sign * magnitudes).view(1, 240, 3, 3).to(torch.int8)
    for code in (0, 255):
        codes = torch.full((1, 240, 8, 8), code, dtype=torch.uint8)
        direct, winograd = both(*plain(codes, weight, zero_point=128))
        assert torch.equal(direct, winograd)
        assert winograd.abs().max() == abs(code - 128) * (MOST + over)


def test_sums_of_many_parts():
    """Every product at its limit, in channels that need several parts."""
    for value, code in ((-128, 0), (-128, 255), (127, 0), (127, 255)):
        weight = torch.full((70, 700, 3, 3), value, dtype=torch.int8)
        codes = torch.full((1, 700, 5, 6), code, dtype=torch.uint8)
        direct, winograd = both(*plain(codes, weight))
        assert torch.equal(direct, winograd)
        assert winograd[0, 0, 2, 2] == float(700 * 9 * value * code)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_any_number_of_threads(threads):
    codes = torch.randint(0, 256, (2, 40, 13, 20), dtype=torch.uint8)
    arguments = plain(codes, torch.randint(-128, 128, (150, 40, 3, 3), dtype=torch.int8))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        direct, winograd = both(*arguments)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(direct, winograd)


def test_inputs_too_large_to_be_transformed_at_once():
    codes = torch.randint(0, 256, (1, 300, 162, 158), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    direct, winograd = both(*plain(codes, torch.randint(-128, 128, (16, 300, 3, 3), dtype=torch.int8)))
    assert torch.equal(direct, winograd)


def test_it_is_what_plain_torch_makes_of_it():
    codes = torch.randint(0, 256, (2, 40, 9, 7), dtype=torch.uint8)
    weight = torch.randint(-128, 128, (33, 40, 3, 3), dtype=torch.int8)
    packed, sums = pack_weight.reference(weight, 8)
    arguments = plain(codes, weight, zero_point=7)
    expected = int_conv.reference(
        *([codes], [1.0], [7], [packed], [torch.ones_like(sums, dtype=torch.float32)], [sums], *arguments[6:])
    )
    assert torch.equal(both(*arguments)[1], expected)


def test_the_cheapest_way_is_taken_by_itself():
    """And it gives what either way gives."""
    codes = torch.randint(0, 256, (2, 64, 24, 24), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    weight = torch.randint(-128, 128, (64, 64, 3, 3), dtype=torch.int8)
    direct, _ = both(*plain(codes, weight))
    ops.set_convolution_algorithm("cheapest")
    assert torch.equal(ops.int_conv(*plain(codes, weight)), direct)


def test_other_convolutions_stay_direct():
    """Strides, dilations and other windows are no less right when the algorithm is asked for."""
    codes = torch.randint(0, 256, (1, 8, 12, 12), dtype=torch.uint8)
    for kernel, stride, dilation in (((3, 3), [2, 2], [1, 1]), ((3, 3), [1, 1], [2, 2]), ((1, 3), [1, 1], [1, 1])):
        weight = torch.randint(-128, 128, (16, 8, *kernel), dtype=torch.int8)
        arguments = plain(codes, weight)
        arguments[7:9], arguments[10] = [list(kernel), stride], dilation
        direct, winograd = both(*arguments)
        assert torch.equal(direct, winograd)


def test_an_algorithm_that_there_is_not():
    with pytest.raises(RuntimeError, match="cheapest, direct or winograd, not fastest"):
        ops.set_convolution_algorithm("fastest")
