"""The compiled integer kernels against plain torch, on whatever shapes and layouts may come."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from kernel_calls import (
    NORM_RESOLUTION,
    assert_close,
    convolutions,
    depthwise_convolutions,
    extreme_linears,
    feedback_roundings,
    grams,
    group_norms,
    layer_norms,
    linears,
    padded,
    quantizations,
    second_codes,
)

from examples import examples
from qdiff_fx.errors import KernelError
from qdiff_fx.kernels import ops as plain
from qdiff_fx.kernels import status
from qdiff_fx.kernels.activations import Activation
from qdiff_fx.kernels.isa import supported_isas

pytestmark = pytest.mark.skipif(not status().available, reason=status().reason or "-")
ops = torch.ops.qdiff

FILES = (
    "test_integer.py",
    "test_winograd.py",
    "test_attention_vnni.py",
    "test_nearest_codes.py",
    "test_histogram.py",
    "test_adaround_step.py",
    "test_range_errors.py",
)  # of every instruction set


@given(convolutions())
@examples(60)
def test_convolution(call):
    assert_close(call.run(), call.reference())


@given(depthwise_convolutions())
@examples(60)
def test_convolution_of_every_channel_by_itself(call):
    assert_close(call.run(), call.reference())


@given(linears())
@examples(30)
def test_linear(call):
    assert_close(call.run(), call.reference())


@given(group_norms())
@examples(40)
def test_group_norm(call):
    assert_close(call.run(), call.reference(), NORM_RESOLUTION)


@given(layer_norms())
@examples(30)
def test_layer_norm(call):
    assert_close(call.run(), call.reference(), NORM_RESOLUTION)


@given(quantizations())
@examples(60)
def test_activation_and_quantizer(call):
    assert_close(call.run(), call.reference())


@given(second_codes())
@examples(40)
def test_two_codes_hold_sixteen_bits(call):
    """The second code is that of the plain kernel, and both together are 255 times as close as the first."""
    x, activation, scale = call.arguments["x"], call.arguments["activation"], call.arguments["scale"]
    values = plain.act_quantize.reference(x, activation, torch.float32, 1.0, 0, 0, 0)
    codes = ops.act_quantize(x, activation, torch.uint8, scale, 128, 0, 255)
    rest = call.run()
    # Where the first code lies on a boundary so does the second, at the other end.
    expected = call.reference()
    same = codes == plain.act_quantize.reference(x, activation, torch.uint8, scale, 128, 0, 255)
    assert rest.dtype == torch.uint8
    assert ((rest.int() - expected.int()).abs() <= 1)[same].all()
    assert same.float().mean() > 0.9 or not same.numel()
    both = (codes.float() - 128) * scale + (rest.float() - 127) * scale / 255
    assert ((both - values).abs() <= scale / 255 + 4e-6).all()


@pytest.mark.parametrize("activation", [Activation.NONE, Activation.SILU, Activation.GELU_TANH, Activation.RELU])
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


@pytest.mark.parametrize("channels", [64, 15, 17])
def test_extremes_of_every_channel_by_itself(channels):
    """The largest sums of 25 taps, exactly, and what lies outside the image counts nothing."""
    for code, zero_point, value in ((255, 0, -128), (255, 0, 127), (0, 255, -128), (0, 255, 127)):
        codes = torch.full((1, channels, 7, 6), code, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
        weight = torch.full((5, 5, channels), value, dtype=torch.int8)
        operands = (codes, 1.0, zero_point, weight, torch.ones(channels))
        out = ops.int_depthwise_conv(*operands, [1, 1], [2] * 4, [1, 1], None, None, 0, torch.float32, 1.0, 0, 0, 0)
        inside = torch.nn.functional.conv2d(torch.ones(1, 1, 7, 6), torch.ones(1, 1, 5, 5), padding=2)
        assert torch.equal(out, (inside * (code - zero_point) * value).expand(out.shape))


@given(extreme_linears())
@examples(25)
def test_sums_are_exact_at_the_extremes(call):
    """As many as fit into 16 bits and more, to the last bit."""
    expected = call.arguments["codes"].long() @ call.arguments["weights"][0].long().T
    assert torch.equal(call.run(), expected.float())


@given(grams())
@examples(40)
def test_second_moments_are_added_exactly(call):
    assert torch.equal(call.run(), call.reference())


def test_second_moments_of_rows_that_are_not_taken_at_once():
    """So many that they are brought into order in two runs, and the most there may be."""
    codes = torch.randint(-128, 128, (9000, 2000), dtype=torch.int8)
    total = torch.zeros(2000, 2000, dtype=torch.int32)
    ops.int_gram(total, codes)
    for at in (slice(0, 3), slice(997, 1003), slice(1997, 2000)):
        assert torch.equal(total[at].long(), (codes[:, at].double().T @ codes.double()).long())
    assert torch.equal(total, total.T)
    most = torch.zeros(2, 2, dtype=torch.int32)
    ops.int_gram(most, torch.full((plain.int_gram.MOST_ROWS, 2), -128, dtype=torch.int8))
    assert (most == plain.int_gram.MOST_ROWS * 128**2).all()


@pytest.mark.parametrize("gram", [ops.int_gram, plain.int_gram.reference], ids=["compiled", "plain"])
@pytest.mark.parametrize(
    ("total", "rows", "message"),
    [
        (torch.zeros(3, 3, dtype=torch.int32), torch.zeros(2, 3, dtype=torch.uint8), r"rows must be int8 \(R, K\)"),
        (torch.zeros(3, 3, dtype=torch.int32), torch.zeros(1, 2, 3, dtype=torch.int8), r"rows must be int8 \(R, K\)"),
        (torch.zeros(3, 3), torch.zeros(2, 3, dtype=torch.int8), "total must be contiguous int32"),
        (torch.zeros(4, 3, dtype=torch.int32), torch.zeros(2, 3, dtype=torch.int8), "total must be contiguous int32"),
        (torch.zeros(3, 3, dtype=torch.int32), torch.zeros(2, 4, dtype=torch.int8), "total must be contiguous"),
        (
            torch.zeros(1, dtype=torch.int32).expand(3, 3),
            torch.zeros(2, 3, dtype=torch.int8),
            "total must be contiguous",
        ),
        (torch.zeros(1, 1, dtype=torch.int32), torch.zeros(131072, 1, dtype=torch.int8), "takes 131071 rows at most"),
    ],
)
def test_second_moments_that_are_refused(gram, total, rows, message):
    with pytest.raises((RuntimeError, KernelError), match=f"int_gram.*{message}"):
        gram(total, rows)


@given(feedback_roundings())
@examples(40)
def test_rounding_with_feedback_is_plain_torch_to_the_bit(call):
    assert torch.equal(call.run(), call.reference())


def test_rounding_with_feedback_of_what_is_no_number_or_too_large():
    steps = torch.tensor([[float("nan"), float("inf"), -float("inf"), 1e30, 2.5, -0.5]])
    for kernel in (ops.round_with_feedback, plain.round_with_feedback.reference):
        codes, left, _ = kernel(steps, torch.zeros(1, 6), torch.ones(1, 1), -8, 7)
        assert codes.tolist() == [[-8, 7, -8, 7, 2, 0]]
        assert left[0, 4:].tolist() == [0.5, -0.5]


@pytest.mark.parametrize(
    "kernel", [ops.round_with_feedback, plain.round_with_feedback.reference], ids=["compiled", "plain"]
)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": torch.zeros(3)}, r"steps must be \(K, O\)"),
        ({"steps": torch.zeros(129, 4)}, "the number of columns must be 1..128, not 129"),
        ({"steps": torch.zeros(3, 4).double()}, "steps must be contiguous float32"),
        ({"steps": torch.zeros(4, 3).T}, "steps must be contiguous float32"),
        ({"pull": torch.zeros(3, 5)}, "the pull must be contiguous float32"),
        ({"factor": torch.zeros(3, 2)}, "the factor must be contiguous float32"),
        ({"low": 5, "high": 4}, "codes from 5 to 4 do not fit int8"),
        ({"high": 128}, "codes from -8 to 128 do not fit int8"),
    ],
)
def test_rounding_with_feedback_that_is_refused(kernel, change, message):
    arguments = {"steps": torch.zeros(3, 4), "pull": torch.zeros(3, 4), "factor": torch.eye(3), "low": -8, "high": 7}
    with pytest.raises((RuntimeError, KernelError), match=f"round_with_feedback.*{message}"):
        kernel(*(arguments | change).values())


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


OTHERS = [isa for isa in supported_isas() if isa != status().kernel]
# Of the others the one that most people have runs each time.
OFTEN = [isa for isa in ("avx2", *OTHERS) if isa in OTHERS][:1]


@pytest.mark.parametrize("isa", [isa if isa in OFTEN else pytest.param(isa, marks=pytest.mark.slow) for isa in OTHERS])
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
