"""The compiled integer kernels against plain torch, on whatever shapes and layouts may come."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from examples import examples
from qdiff_fx.errors import KernelError
from qdiff_fx.kernels import ops as plain
from qdiff_fx.kernels import status
from qdiff_fx.kernels.activations import Activation
from qdiff_fx.kernels.isa import supported_isas

pytestmark = pytest.mark.skipif(not status().available, reason=status().reason or "-")
ops = torch.ops.qdiff

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
floats = st.sampled_from(FLOATS)
activations = st.sampled_from([a for a in Activation if a != Activation.GEGLU])
seeds = st.integers(0, 10_000)


FILES = ("test_integer.py", "test_winograd.py", "test_attention_vnni.py")  # of every instruction set
NORM_RESOLUTION = 3e-5  # a mean far from zero is subtracted, which costs digits


def assert_close(actual: Tensor, expected: Tensor, resolution: float = 2e-6) -> None:
    """Floats to rounding in their type; codes to one step, where the value before lies on a boundary."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    if not expected.is_floating_point():
        difference = (actual.int() - expected.int()).abs()
        assert difference.max() <= 1 if difference.numel() else True
        assert (difference > 0).float().mean() < 0.01 if difference.numel() > 200 else True
        return
    resolution = max(torch.finfo(expected.dtype).eps, resolution)
    size = max(expected.abs().max().item(), 1.0) if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, rtol=resolution, atol=resolution * size)


@st.composite
def output(draw) -> tuple[torch.dtype, float, int, int, int]:
    """Where results go: a float type, or codes with their quantizer."""
    dtype = draw(st.sampled_from([*FLOATS, torch.uint8, torch.int8]))
    if dtype in FLOATS:
        return dtype, 1.0, 0, 0, 0
    least = 0 if dtype == torch.uint8 else -128
    bits = draw(st.sampled_from([8, 8, 6, 4]))
    low, high = (0, 2**bits - 1) if dtype == torch.uint8 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert low >= least
    return dtype, draw(st.floats(0.01, 3.0)), draw(st.integers(low, high)), low, high


def layout(x: Tensor, kind: str) -> Tensor:
    """The same values, laid out in memory as a network may have them."""
    if kind == "channels_last" and x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if kind == "slice":
        wider = torch.empty((x.shape[0], x.shape[1] + 3, *x.shape[2:]), dtype=x.dtype)
        if x.dim() == 4:
            wider = wider.contiguous(memory_format=torch.channels_last)
        wider[:, 1:-2] = x
        return wider[:, 1:-2]
    return x


layouts = st.sampled_from(["channels_last", "contiguous", "slice"])


def padded(scales: Tensor, sums: Tensor) -> Tensor:
    return torch.cat([scales, torch.zeros(sums.numel() - scales.numel())])


@given(st.data())
@examples(60)
def test_convolution(data):
    """Any number of sources, window, padding, upsampling, and everything that may be added to the sum."""
    draw = data.draw
    torch.manual_seed(draw(seeds))
    batch, out_channels = draw(st.integers(1, 3)), draw(st.sampled_from([1, 5, 16, 17, 40, 64, 70, 130]))
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (1, 3), (4, 2)]))
    stride, dilation, enlarge = (draw(st.tuples(*[st.integers(1, 2)] * 2)) for _ in range(3))
    padding = draw(st.tuples(*[st.integers(0, 2)] * 4))
    size = [dilation[i] * (kernel[i] - 1) + draw(st.integers(1, 7)) for i in range(2)]
    sources, widths = [], []
    for _ in range(draw(st.integers(1, 3))):
        channels = draw(st.sampled_from([1, 3, 4, 8, 13, 64]))
        codes = torch.randint(0, 256, (batch, channels, *size), dtype=torch.uint8)
        widths.append(draw(st.sampled_from([8, 8, 6, 5, 4, 3])))
        largest = 2 ** (widths[-1] - 1)
        weight = torch.randint(-largest, largest, (out_channels, channels, *kernel), dtype=torch.int8)
        scale, zero_point = draw(st.floats(0.001, 0.1)), draw(st.integers(0, 255))
        sources.append((layout(codes, draw(layouts)), scale, zero_point, weight, torch.rand(out_channels) / 100))
    bias = torch.randn(out_channels) if draw(st.booleans()) else None
    shift = torch.randn(draw(st.sampled_from([1, batch])), out_channels) if draw(st.booleans()) else None
    activation, out = draw(activations), draw(output())

    def run(op, pack, residual):
        codes, scales, zero_points, weights, weight_scales = zip(*sources, strict=True)
        packs = [pack(weight, bits) for weight, bits in zip(weights, widths, strict=True)]
        return op(
            *(list(codes), list(scales), list(zero_points), [p[0] for p in packs]),
            [padded(s, p[1]) for s, p in zip(weight_scales, packs, strict=True)],
            *([p[1] for p in packs], out_channels, kernel, stride, padding, dilation, enlarge),
            *(bias, shift, residual, int(activation), *out),
        )

    residual = None
    if draw(st.booleans()):
        shape = run(plain.int_conv.reference, plain.pack_weight.reference, None).shape
        residual = layout(torch.randn(shape).to(draw(floats)), draw(layouts))
    expected = run(plain.int_conv.reference, plain.pack_weight.reference, residual)
    assert_close(run(ops.int_conv, ops.pack_weight, residual), expected)


@given(st.data())
@examples(30)
def test_linear(data):
    draw = data.draw
    torch.manual_seed(draw(seeds))
    rows = draw(st.sampled_from([(1,), (7,), (2, 5), (2, 3, 4), (0,), ()]))
    features, outputs = draw(st.integers(1, 70)), draw(st.sampled_from([1, 16, 33, 64, 100, 200]))
    codes = torch.randint(0, 256, (*rows, features), dtype=torch.uint8)
    if len(rows) == 2 and draw(st.booleans()):
        codes = codes.transpose(0, 1).contiguous().transpose(0, 1)
    weight = torch.randint(-128, 128, (outputs, features), dtype=torch.int8)
    scales, bias = torch.rand(outputs) / 100, torch.randn(outputs) if draw(st.booleans()) else None
    residual = torch.randn(*rows, outputs).to(draw(floats)) if draw(st.booleans()) else None
    numbers, tail = (draw(st.floats(0.001, 0.1)), draw(st.integers(0, 255))), (int(draw(activations)), *draw(output()))

    def run(op, pack):
        packed, sums = pack(weight, 8)
        return op(codes, *numbers, [packed], [padded(scales, sums)], [sums], outputs, bias, residual, *tail)

    assert_close(run(ops.int_linear, ops.pack_weight), run(plain.int_linear.reference, plain.pack_weight.reference))


@given(st.data())
@examples(40)
def test_group_norm(data):
    draw = data.draw
    torch.manual_seed(draw(seeds))
    groups, batch = draw(st.sampled_from([1, 2, 4])), draw(st.integers(1, 3))
    space = draw(st.sampled_from([(), (5,), (9, 8), (3, 4, 2), (20, 11)]))
    dtype = draw(floats)
    # The parts share groups: their borders need not be those of the groups.
    sizes = [draw(st.integers(1, 40)) for _ in range(draw(st.integers(1, 3)))]
    sizes[-1] += -sum(sizes) % groups
    parts = [
        layout((torch.randn(batch, size, *space) * 3 + draw(st.sampled_from([0.0, 20.0]))).to(dtype), draw(layouts))
        for size in sizes
    ]
    affine = (torch.randn(sum(sizes)), torch.randn(sum(sizes))) if draw(st.booleans()) else (None, None)
    if sum(sizes) // groups * max(1, torch.Size(space).numel()) == 1:
        return  # torch refuses to normalise one value
    activation = draw(st.sampled_from([Activation.NONE, Activation.SILU]))
    args = (parts, groups, *affine, 1e-5, int(activation), *draw(output()))
    assert_close(ops.group_norm_act(*args), plain.group_norm_act.reference(*args), NORM_RESOLUTION)


@given(st.data())
@examples(30)
def test_layer_norm(data):
    draw = data.draw
    torch.manual_seed(draw(seeds))
    x = torch.randn(*draw(st.sampled_from([(3,), (2, 5), (0,)])), draw(st.integers(2, 90))) * 4 + 10
    x = x.to(draw(floats))
    affine = (torch.randn(x.shape[-1]), torch.randn(x.shape[-1])) if draw(st.booleans()) else (None, None)
    args = (x, *affine, 1e-5, *draw(output()))
    assert_close(ops.layer_norm_act(*args), plain.layer_norm_act.reference(*args), NORM_RESOLUTION)


@given(st.data())
@examples(60)
def test_activation_and_quantizer(data):
    draw = data.draw
    torch.manual_seed(draw(seeds))
    x = torch.randn(
        *draw(st.sampled_from([(3,), (2, 5), (2, 3, 4, 5), (0, 4), (33, 70)])), draw(st.integers(1, 45)) * 2
    )
    x = (x * draw(st.sampled_from([1.0, 30.0]))).to(draw(floats))
    if x.dim() > 2 and draw(st.booleans()):
        x = x.transpose(0, 1)
    args = (x, int(draw(st.sampled_from(list(Activation)))), *draw(output()))
    assert_close(ops.act_quantize(*args), plain.act_quantize.reference(*args))


@given(st.data())
@examples(40)
def test_two_codes_hold_sixteen_bits(data):
    """The second code is that of the plain kernel, and both together are 255 times as close as the first."""
    draw = data.draw
    torch.manual_seed(draw(seeds))
    x = torch.randn(*draw(st.sampled_from([(3,), (2, 5), (2, 3, 4, 5), (0, 4), (33, 70)])), draw(st.integers(1, 45)))
    x = x.to(draw(floats))
    activation = draw(st.sampled_from([Activation.NONE, Activation.SILU]))
    values = plain.act_quantize.reference(x, activation, torch.float32, 1.0, 0, 0, 0)
    scale = 0.05
    args = (x, int(activation), scale, 128, 0, 255, scale / 255, 127)
    codes = ops.act_quantize(x, int(activation), torch.uint8, scale, 128, 0, 255)
    rest = ops.act_quantize_rest(*args)
    # Where the first code lies on a boundary so does the second, at the other end.
    expected = plain.act_quantize_rest.reference(*args)
    same = codes == plain.act_quantize.reference(x, activation, torch.uint8, scale, 128, 0, 255)
    assert rest.dtype == torch.uint8
    assert ((rest.int() - expected.int()).abs() <= 1)[same].all()
    assert same.float().mean() > 0.9 or not same.numel()
    both = (codes.float() - 128) * scale + (rest.float() - 127) * scale / 255
    assert ((both - values).abs() <= scale / 255 + 4e-6).all()


@pytest.mark.parametrize("activation", [Activation.NONE, Activation.SILU, Activation.GELU_TANH])
def test_what_is_no_number_gets_the_lowest_code_and_what_is_too_large_the_outermost(activation):
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 0.0])
    codes = ops.act_quantize(x, int(activation), torch.uint8, 0.1, 100, 3, 250)
    lowest = 3 if activation == Activation.NONE else None
    assert codes.tolist()[:2] == [3, 250]
    assert codes.tolist()[3] == 250
    assert codes.tolist()[5] == 100
    if lowest is not None:
        assert codes.tolist()[2] == codes.tolist()[4] == lowest


@pytest.mark.parametrize(
    ("bits", "features"),
    # Sums of 4-bit weights are 16 times too large for a while, where they fit so into 32 bits: up to 65,793 of them.
    [(8, 4096), (4, 4096), (4, 65_792), (4, 65_800)],
)
@pytest.mark.parametrize("outputs", [16, 64])
def test_extremes_do_not_overflow(bits, features, outputs):
    """The largest sum there is: every product at its limit."""
    limit = 2 ** (bits - 1)
    for code, zero_point in ((255, 0), (0, 255)):
        codes = torch.full((1, features), code, dtype=torch.uint8)
        for value in (-limit, limit - 1):
            packed, sums = ops.pack_weight(torch.full((outputs, features), value, dtype=torch.int8), bits)
            operands = ([packed], [torch.ones(outputs)], [sums], outputs, None, None)
            out = ops.int_linear(codes, 1.0, zero_point, *operands, 0, torch.float32, 1.0, 0, 0, 0)
            assert (out == float((code - zero_point) * features * value)).all()


@given(st.data())
@examples(25)
def test_sums_are_exact_at_the_extremes(data):
    """Codes of 0 and 255 and weights at their limits, as many as fit into 16 bits and more, to the last bit."""
    draw = data.draw
    torch.manual_seed(draw(seeds))
    bits, rows = draw(st.integers(2, 8)), draw(st.sampled_from([1, 5, 6, 23, 24, 31]))
    features = draw(st.one_of(st.integers(1, 80), st.sampled_from([1020, 1023, 1028, 2071])))
    outputs, limit = draw(st.sampled_from([1, 16, 40, 64, 130])), 2 ** (bits - 1)
    codes = torch.randint(0, 2, (rows, features)) * 255
    weight = torch.where(torch.rand(outputs, features) < draw(st.sampled_from([0.0, 0.5, 1.0])), -limit, limit - 1)
    packed, sums = ops.pack_weight(weight.to(torch.int8), bits)
    operands = ([packed], [padded(torch.ones(outputs), sums)], [sums], outputs, None, None)
    out = ops.int_linear(codes.to(torch.uint8), 1.0, 0, *operands, 0, torch.float32, 1.0, 0, 0, 0)
    assert torch.equal(out, (codes @ weight.T).float())


def test_misaligned_and_huge_strides():
    memory = torch.randint(0, 256, (1 + 2 * 1000 * 50,), dtype=torch.uint8)
    codes = torch.as_strided(memory, (2, 12, 3, 5), (50_000, 1, 1000, 17), 1)
    weight = torch.randint(-128, 128, (20, 12, 3, 3), dtype=torch.int8)

    def run(op, pack):
        packed, sums = pack(weight, 8)
        window = ((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), (1, 1))
        scales = padded(torch.ones(20), sums)
        return op(
            [codes],
            [0.1],
            [9],
            [packed],
            [scales],
            [sums],
            20,
            *window,
            None,
            None,
            None,
            0,
            torch.float32,
            1.0,
            0,
            0,
            0,
        )

    assert_close(run(ops.int_conv, ops.pack_weight), run(plain.int_conv.reference, plain.pack_weight.reference))


COMPILED = (ops.pack_weight, ops.int_linear)


class TestRefusals:
    """Each says which operator, what is wrong, and what was given; compiled and plain kernels alike."""

    weight = torch.ones(16, 8, dtype=torch.int8)
    kernels = pytest.mark.parametrize(
        "kernels",
        [COMPILED, (plain.pack_weight.reference, plain.int_linear.reference)],
        ids=["compiled", "plain"],
    )

    def linear(self, kernels, codes=None, scale=0.1, zero_point=0, out=(torch.float32, 1.0, 0, 0, 0)):
        pack, layer = kernels
        packed, sums = pack(self.weight, 8)
        codes = torch.zeros(2, 8, dtype=torch.uint8) if codes is None else codes
        return layer(codes, scale, zero_point, [packed], [torch.ones(16)], [sums], 16, None, None, 0, *out)

    @kernels
    @pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
    def test_scales(self, kernels, scale):
        with pytest.raises((RuntimeError, KernelError), match="positive finite number"):
            self.linear(kernels, scale=scale)

    @kernels
    def test_codes_of_another_type(self, kernels):
        with pytest.raises((RuntimeError, KernelError), match="uint8"):
            self.linear(kernels, codes=torch.zeros(2, 8))

    def test_a_zero_point_that_is_no_code(self):
        with pytest.raises(RuntimeError, match="zero point 256"):
            self.linear(COMPILED, zero_point=256)

    def test_an_output_quantizer_that_does_not_fit(self):
        with pytest.raises(RuntimeError, match="codes from 0 to 300"):
            self.linear(COMPILED, out=(torch.uint8, 1.0, 0, 0, 300))
        with pytest.raises(RuntimeError, match="must be a positive finite number"):
            self.linear(COMPILED, out=(torch.uint8, float("nan"), 0, 0, 255))

    def test_a_weight_of_another_shape(self):
        with pytest.raises(RuntimeError, match="packed weight"):
            self.linear(COMPILED, codes=torch.zeros(2, 12, dtype=torch.uint8))

    def test_an_empty_weight(self):
        for pack in (ops.pack_weight, plain.pack_weight.reference):
            with pytest.raises((RuntimeError, KernelError), match="pack_weight"):
                pack(torch.zeros(0, 3, dtype=torch.int8), 8)

    def test_parts_that_do_not_fit_each_other(self):
        a, b = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 4)
        with pytest.raises(RuntimeError, match="differ in more than channels"):
            ops.group_norm_act([a, b], 1, None, None, 1e-5, 0, torch.float32, 1.0, 0, 0, 0)
        with pytest.raises(RuntimeError, match="do not make 3 groups"):
            ops.group_norm_act([a], 3, None, None, 1e-5, 0, torch.float32, 1.0, 0, 0, 0)


def _others() -> list[object]:
    others = [isa for isa in supported_isas() if isa != status().kernel]
    # One source in two encodings: compiling both takes half a minute more.
    again = {"avx_vnni_evex"} if "avx_vnni" in others else set()
    return [pytest.param(isa, marks=pytest.mark.slow) if isa in again else isa for isa in others]


@pytest.mark.parametrize("isa", _others())
def test_other_instruction_sets(isa):
    """These tests, those of Winograd and of attention, with each other instruction set this processor has, forced."""
    if "QDIFF_KERNELS" in os.environ:
        pytest.skip("this is such a run")
    environment = os.environ | {"QDIFF_KERNELS": isa, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    files = [str(Path(__file__).with_name(name)) for name in FILES]
    program = f"""
import pytest, sys
from qdiff_fx.kernels import status
assert status().kernel == {isa!r}, status()
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *{files!r}]))
"""
    done = subprocess.run([sys.executable, "-c", program], env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-4000:]
