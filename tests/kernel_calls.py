"""Calls of the operators as hypothesis draws them: what compiled kernels are tried with, here and on other processors.

A call holds weights as plain codes; whoever runs it packs them as that implementation reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from qdiff_fx.kernels import ops as plain
from qdiff_fx.kernels.activations import Activation

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
floats = st.sampled_from(FLOATS)
activations = st.sampled_from([a for a in Activation if a != Activation.GEGLU])
seeds = st.integers(0, 10_000)
MOST = (
    2**25 // 128
)  # weights of one output channel whose magnitudes add up to less are summed in one part by Winograd's way


@dataclass(frozen=True)
class Call:
    """An operator and its arguments by name, but of weights their codes, `bits`, and one scale per output channel."""

    operator: str
    arguments: dict[str, Any]

    def run(self) -> Tensor:
        """What the compiled kernels make of it."""
        return self._through(torch.ops.qdiff.pack_weight, getattr(torch.ops.qdiff, self.operator))

    def reference(self) -> Tensor:
        """What plain torch makes of it."""
        operator = self.operator.removesuffix("_vnni")
        return self._through(plain.pack_weight.reference, getattr(plain, operator).reference)

    def _through(self, pack: Callable[..., Any], operator: Callable[..., Any]) -> Tensor:
        arguments = dict(self.arguments)
        if "weights" in arguments:
            bits, scales = arguments.pop("bits"), arguments["weight_scales"]
            packs = [pack(weight, each) for weight, each in zip(arguments["weights"], bits, strict=True)]
            arguments["weights"], arguments["weight_sums"] = [p[0] for p in packs], [p[1] for p in packs]
            arguments["weight_scales"] = [padded(s, p[1]) for s, p in zip(scales, packs, strict=True)]
        if "total" not in arguments:
            found = operator(**arguments)
            return found if isinstance(found, Tensor) else torch.cat([x.flatten().float() for x in found])
        total: Tensor = arguments["total"].clone()  # which is written into
        operator(**arguments | {"total": total})
        return total


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


def padded(scales: Tensor, sums: Tensor) -> Tensor:
    return torch.cat([scales, torch.zeros(sums.numel() - scales.numel())])


def quantizer(out: tuple[Any, ...], before: str = "") -> dict[str, Any]:
    names = ("scale", "zero_point", "low", "high")
    return {"out_dtype": out[0]} | {before + name: value for name, value in zip(names, out[1:], strict=True)}


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


# ----------------------------------------------------------------------------------------------- second moments


@st.composite
def grams(draw) -> Call:
    """Rows and columns that fill the tiles and such that do not, of codes of all sizes or at their ends."""
    torch.manual_seed(draw(seeds))
    rows, columns = draw(st.integers(0, 150)), draw(st.sampled_from([1, 5, 16, 17, 63, 64, 65, 130, 390, 450]))
    low, high = draw(st.sampled_from([(-128, 128), (-128, -127), (127, 128), (-3, 4)]))
    total = torch.randint(-(2**31), 2**31, (columns, columns)).int()
    return Call("int_gram", {"total": total, "rows": torch.randint(low, high, (rows, columns), dtype=torch.int8)})


@st.composite
def feedback_roundings(draw) -> Call:
    """Columns and channels that fill the vectors and such that do not; some weights far beyond the codes."""
    torch.manual_seed(draw(seeds))
    columns, channels = draw(st.integers(1, 128)), draw(st.sampled_from([1, 5, 16, 17, 64, 70, 130, 300]))
    factor = torch.randn(columns, columns) / columns**0.5
    factor.diagonal().abs_().add_(0.3)
    bits = draw(st.integers(2, 8))
    steps = torch.randn(columns, channels) * 2 ** (bits - 2) * draw(st.sampled_from([1.0, 1.0, 5.0]))
    limits = {"low": -(2 ** (bits - 1)), "high": 2 ** (bits - 1) - 1}
    return Call("round_with_feedback", {"steps": steps, "pull": torch.randn_like(steps), "factor": factor, **limits})


# --------------------------------------------------------------------------------------- weights and what is watched


@st.composite
def nearest_codes(draw) -> Call:
    """Rows of weights whose best scale is not to be mistaken, or for which none is looked for."""
    torch.manual_seed(draw(seeds))
    weight = torch.randn(draw(st.sampled_from([1, 5])), draw(st.sampled_from([1, 15, 16, 70, 600, 1100])))
    weight = (weight ** draw(st.sampled_from([1, 3]))).to(draw(floats))
    numbers = {
        "candidates": draw(st.sampled_from([1, 2, 80])),
        "shrink": 0.01,
        "power": draw(st.sampled_from([2.0, 2.4])),
    }
    return Call("nearest_codes", {"weight": weight, "bits": draw(st.integers(2, 8)), **numbers})


@st.composite
def histograms(draw) -> Call:
    """Rows that fill vectors and tasks and such that do not, whole or every so many numbers of them."""
    torch.manual_seed(draw(seeds))
    rows = torch.randn(draw(st.sampled_from([1, 3])), draw(st.sampled_from([1, 15, 16, 70, 20_000])))
    numbers = {"exponent": draw(st.sampled_from([-9, -2, 0, 30])), "bins": draw(st.sampled_from([2, 64, 2048]))}
    return Call("histogram", {"rows": rows.to(draw(floats)), **numbers, "step": draw(st.sampled_from([1, 3, 5]))})


# ------------------------------------------------------------------------------------------------ convolutions


@st.composite
def convolutions(draw) -> Call:
    """Any number of sources, window, padding, upsampling, and everything that may be added to the sum."""
    torch.manual_seed(draw(seeds))
    batch, out_channels = draw(st.integers(1, 3)), draw(st.sampled_from([1, 5, 16, 17, 40, 64, 70, 130]))
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (1, 3), (4, 2)]))
    stride, dilation, enlarge = (draw(st.tuples(*[st.integers(1, 2)] * 2)) for _ in range(3))
    padding = draw(st.tuples(*[st.integers(0, 2)] * 4))
    size = [dilation[i] * (kernel[i] - 1) + draw(st.integers(1, 7)) for i in range(2)]
    codes, weights, widths, scales, zero_points = [], [], [], [], []
    for _ in range(draw(st.integers(1, 3))):
        channels = draw(st.sampled_from([1, 3, 4, 8, 13, 64]))
        image = torch.randint(0, 256, (batch, channels, *size), dtype=torch.uint8)
        widths.append(draw(st.sampled_from([8, 8, 6, 5, 4, 3])))
        largest = 2 ** (widths[-1] - 1)
        weights.append(torch.randint(-largest, largest, (out_channels, channels, *kernel), dtype=torch.int8))
        scales.append(draw(st.floats(0.001, 0.1)))
        zero_points.append(draw(st.integers(0, 255)))
        codes.append(layout(image, draw(layouts)))
    return _convolution(
        draw, codes, scales, zero_points, weights, widths, (kernel, stride, padding, dilation, enlarge), output()
    )


@st.composite
def small_convolutions(draw) -> Call:
    """3x3 and stride 1, which either algorithm computes: more channels, and codes and weights at their ends."""
    torch.manual_seed(draw(seeds))
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
    window = ((3, 3), (1, 1), padding, (1, 1), factor)
    out = st.sampled_from(
        [(torch.float32, 1.0, 0, 0, 0), (torch.float16, 1.0, 0, 0, 0), (torch.uint8, 3.0, 100, 0, 255)]
    )
    return _convolution(draw, codes, [0.02] * len(codes), zero_points, weights, bits, window, out)


def _convolution(
    draw: Any,
    codes: list[Tensor],
    scales: list[float],
    zero_points: list[int],
    weights: list[Tensor],
    bits: list[int],
    window: tuple[Any, ...],
    out: st.SearchStrategy[tuple[Any, ...]],
) -> Call:
    """With what may follow the sum."""
    batch, out_channels = len(codes[0]), len(weights[0])
    bias = torch.randn(out_channels) if draw(st.booleans()) else None
    shift = torch.randn(draw(st.sampled_from([1, batch])), out_channels) if draw(st.booleans()) else None
    activation, to, residual = draw(activations), draw(out), None
    if draw(st.booleans()):
        shape = plain.int_conv.check(codes, out_channels, *window, activation, to[0])
        residual = layout(torch.randn(shape).to(draw(floats)), draw(layouts))
    added = {"bias": bias, "shift": shift, "residual": residual, "activation": int(activation)}
    weight_scales = [torch.rand(out_channels) / 100 + 1e-4 for _ in codes]
    sources = {"codes": codes, "scales": scales, "zero_points": zero_points, "weights": weights, "bits": bits}
    names = ("kernel", "stride", "padding", "dilation", "enlarge")
    return Call(
        "int_conv",
        sources
        | {"weight_scales": weight_scales, "out_channels": out_channels}
        | dict(zip(names, window, strict=True))
        | added
        | quantizer(to, "out_"),
    )


@st.composite
def depthwise_convolutions(draw) -> Call:
    """Every channel by itself; codes and weights of any size, or at their ends only."""
    torch.manual_seed(draw(seeds))
    batch, channels = draw(st.integers(1, 3)), draw(st.sampled_from([1, 3, 8, 15, 16, 17, 40, 64, 70, 130]))
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (1, 3), (4, 2), (5, 5)]))
    stride, dilation = (draw(st.tuples(*[st.integers(1, 2)] * 2)) for _ in range(2))
    padding = draw(st.tuples(*[st.integers(0, 2)] * 4))
    size = [dilation[i] * (kernel[i] - 1) + draw(st.integers(1, 9)) for i in range(2)]
    codes = torch.randint(0, 256, (batch, channels, *size), dtype=torch.uint8)
    weight = torch.randint(-128, 128, (*kernel, channels), dtype=torch.int8)
    if draw(st.booleans()):
        codes, weight = (codes > 127).to(torch.uint8) * 255, torch.where(weight < 0, -128, 127).to(torch.int8)
    activation, to, residual = draw(activations), draw(output()), None
    if draw(st.booleans()):
        shape = plain.int_depthwise_conv.check(codes, weight, stride, padding, dilation, activation, to[0])
        residual = layout(torch.randn(shape).to(draw(floats)), draw(layouts))
    arguments = {
        "codes": layout(codes, draw(layouts)),
        "scale": draw(st.floats(0.001, 0.1)),
        "zero_point": draw(st.integers(0, 255)),
        "weight": weight,
        "weight_scale": torch.rand(channels) / 100 + 1e-4,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "bias": torch.randn(channels) if draw(st.booleans()) else None,
        "residual": residual,
        "activation": int(activation),
    }
    return Call("int_depthwise_conv", arguments | quantizer(to, "out_"))


def plain_convolution(codes: Tensor, weight: Tensor, zero_point: int = 0) -> Call:
    """3x3 and padded, nothing but the sums."""
    names = ("kernel", "stride", "padding", "dilation", "enlarge")
    window = dict(zip(names, ((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), (1, 1)), strict=True))
    sources = {"codes": [codes], "scales": [1.0], "zero_points": [zero_point], "weights": [weight], "bits": [8]}
    return Call(
        "int_conv",
        sources
        | {"weight_scales": [torch.ones(len(weight))], "out_channels": len(weight)}
        | window
        | {"bias": None, "shift": None, "residual": None, "activation": 0}
        | quantizer((torch.float32, 1.0, 0, 0, 0), "out_"),
    )


def convolution_at_the_bound(over: int, sign: int, code: int) -> Call:
    """Weights of a channel whose magnitudes add up to `over` more than one part of Winograd's way holds."""
    magnitudes = torch.zeros(1, 240, 9)
    magnitudes.view(-1)[: (MOST + over) // 127] = 127
    magnitudes.view(-1)[-1] = (MOST + over) % 127
    assert magnitudes.sum() == MOST + over
    weight = (sign * magnitudes).view(1, 240, 3, 3).to(torch.int8)
    return plain_convolution(torch.full((1, 240, 8, 8), code, dtype=torch.uint8), weight, zero_point=128)


# ---------------------------------------------------------------------------------------------- linear layers


def linear(
    codes: Tensor,
    weights: list[Tensor],
    bits: int,
    out: tuple[Any, ...] = (torch.float32, 1.0, 0, 0, 0),
    **others: Any,
) -> Call:
    """Nothing but the sums, unless others say more."""
    arguments = {"codes": codes, "scale": 1.0, "zero_point": 0, "weights": weights, "bits": [bits] * len(weights)}
    arguments |= {"weight_scales": [torch.ones(len(weight)) for weight in weights], "out_features": len(weights[0])}
    arguments |= {"bias": None, "residual": None, "activation": 0}
    return Call("int_linear", arguments | others | quantizer(out, "out_"))


@st.composite
def linears(draw) -> Call:
    torch.manual_seed(draw(seeds))
    rows = draw(st.sampled_from([(1,), (7,), (2, 5), (2, 3, 4), (0,), ()]))
    features, outputs = draw(st.integers(1, 70)), draw(st.sampled_from([1, 16, 33, 64, 100, 200]))
    codes = torch.randint(0, 256, (*rows, features), dtype=torch.uint8)
    if len(rows) == 2 and draw(st.booleans()):
        codes = codes.transpose(0, 1).contiguous().transpose(0, 1)
    activation = draw(st.sampled_from(list(Activation)))
    count = 2 if activation == Activation.GEGLU else 1
    bits = draw(st.sampled_from([8, 8, 8, 4]))
    limit = 2 ** (bits - 1)
    weights = [torch.randint(-limit, limit, (outputs, features), dtype=torch.int8) for _ in range(count)]
    scales = [torch.rand(outputs) / 100 for _ in weights]
    bias = torch.randn(outputs * count) if draw(st.booleans()) else None
    added = draw(st.booleans()) and activation != Activation.GEGLU
    residual = torch.randn(*rows, outputs).to(draw(floats)) if added else None
    numbers = {"scale": draw(st.floats(0.001, 0.1)), "zero_point": draw(st.integers(0, 255))}
    others = numbers | {"weight_scales": scales, "bias": bias, "residual": residual, "activation": int(activation)}
    return linear(codes, weights, bits, draw(output()), **others)


@st.composite
def extreme_linears(draw) -> Call:
    """Codes of 0 and 255 and weights at their limits, as many as fit into 16 bits and more."""
    torch.manual_seed(draw(seeds))
    bits, rows = draw(st.integers(2, 8)), draw(st.sampled_from([1, 5, 6, 23, 24, 31]))
    features = draw(st.one_of(st.integers(1, 80), st.sampled_from([1020, 1023, 1028, 2071])))
    outputs, limit = draw(st.sampled_from([1, 16, 40, 64, 130])), 2 ** (bits - 1)
    codes = torch.randint(0, 2, (rows, features)) * 255
    weight = torch.where(torch.rand(outputs, features) < draw(st.sampled_from([0.0, 0.5, 1.0])), -limit, limit - 1)
    return linear(codes.to(torch.uint8), [weight.to(torch.int8)], bits)


# ------------------------------------------------------------------------------------------ norms, activations


@st.composite
def group_norms(draw) -> Call:
    torch.manual_seed(draw(seeds))
    groups, batch = draw(st.sampled_from([1, 2, 4])), draw(st.integers(1, 3))
    space = draw(st.sampled_from([(), (5,), (9, 8), (3, 4, 2), (20, 11)]))
    dtype = draw(floats)
    # The parts share groups: their borders need not be those of the groups. None has a single value.
    sizes = [draw(st.integers(1, 40)) for _ in range(draw(st.integers(1, 3)))]
    sizes[-1] += groups + -sum(sizes) % groups
    parts = [
        layout((torch.randn(batch, size, *space) * 3 + draw(st.sampled_from([0.0, 20.0]))).to(dtype), draw(layouts))
        for size in sizes
    ]
    affine = (torch.randn(sum(sizes)), torch.randn(sum(sizes))) if draw(st.booleans()) else (None, None)
    activation = int(draw(st.sampled_from([Activation.NONE, Activation.SILU])))
    numbers = {"groups": groups, "weight": affine[0], "bias": affine[1], "epsilon": 1e-5, "activation": activation}
    return Call("group_norm_act", {"parts": parts} | numbers | quantizer(draw(output())))


@st.composite
def layer_norms(draw) -> Call:
    torch.manual_seed(draw(seeds))
    x = torch.randn(*draw(st.sampled_from([(3,), (2, 5), (0,)])), draw(st.integers(2, 90))) * 4 + 10
    x = x.to(draw(floats))
    affine = (torch.randn(x.shape[-1]), torch.randn(x.shape[-1])) if draw(st.booleans()) else (None, None)
    arguments = {"x": x, "weight": affine[0], "bias": affine[1], "epsilon": 1e-5}
    return Call("layer_norm_act", arguments | quantizer(draw(output())))


@st.composite
def quantizations(draw) -> Call:
    """An activation and a quantizer."""
    torch.manual_seed(draw(seeds))
    x = torch.randn(
        *draw(st.sampled_from([(3,), (2, 5), (2, 3, 4, 5), (0, 4), (33, 70)])), draw(st.integers(1, 45)) * 2
    )
    x = (x * draw(st.sampled_from([1.0, 30.0]))).to(draw(floats))
    if x.dim() > 2 and draw(st.booleans()):
        x = x.transpose(0, 1)
    activation = int(draw(st.sampled_from(list(Activation))))
    return Call("act_quantize", {"x": x, "activation": activation} | quantizer(draw(output())))


@st.composite
def second_codes(draw) -> Call:
    """The second of the two codes that hold sixteen bits."""
    torch.manual_seed(draw(seeds))
    x = torch.randn(*draw(st.sampled_from([(3,), (2, 5), (2, 3, 4, 5), (0, 4), (33, 70)])), draw(st.integers(1, 45)))
    activation, scale = int(draw(st.sampled_from([Activation.NONE, Activation.SILU]))), 0.05
    codes = {
        "scale": scale,
        "zero_point": 128,
        "low": 0,
        "high": 255,
        "rest_scale": scale / 255,
        "rest_zero_point": 127,
    }
    return Call("act_quantize_rest", {"x": x.to(draw(floats)), "activation": activation} | codes)


# --------------------------------------------------------------------------------------------------- attention


def codes(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    low, high = (0, 256) if dtype == torch.uint8 else (-128, 128)
    return torch.randint(low, high, shape, dtype=dtype)


def tokens_outside(b: int, h: int, n: int, d: int, dtype: torch.dtype) -> Tensor:
    return codes((b, n, h, d), dtype).transpose(1, 2)


def fused_slice(b: int, h: int, n: int, d: int, dtype: torch.dtype) -> Tensor:
    return codes((b, n, 3 * h * d), dtype)[..., h * d : 2 * h * d].unflatten(-1, (h, d)).transpose(1, 2)


def dims_strided(b: int, h: int, n: int, d: int, dtype: torch.dtype) -> Tensor:
    return codes((b, h, d, n), dtype).transpose(2, 3)


LAYOUTS = {
    "contiguous": lambda b, h, n, d, dtype: codes((b, h, n, d), dtype),
    "tokens_outside": tokens_outside,
    "fused_slice": fused_slice,
    "dims_strided": dims_strided,
    "broadcast_heads": lambda b, h, n, d, dtype: codes((b, 1, n, d), dtype).expand(b, h, n, d),
    "three_dims": lambda b, h, n, d, dtype: codes((b * h, n, d), dtype),
    "two_dims": lambda b, h, n, d, dtype: codes((n, d), dtype),
    "five_dims": lambda b, h, n, d, dtype: codes((b, 1, h, n, d), dtype),
}

MASKS = {
    "none": lambda lead, n, s: None,
    "bool": lambda lead, n, s: torch.rand(*lead, n, s) > 0.3,
    "bool_keys": lambda lead, n, s: torch.rand(*lead[:1], *(1 for _ in lead[1:]), 1, s) > 0.3,
    "bool_expanded": lambda lead, n, s: (torch.rand(s) > 0.3).expand(*lead, n, s),
    "float": lambda lead, n, s: torch.randn(n, s) * 3,
    "float_rows": lambda lead, n, s: torch.randn(n, 1),
    "float_transposed": lambda lead, n, s: torch.randn(s, n).t(),
    "float_minus_infinity": lambda lead, n, s: torch.randn(*lead, n, s).relu().log(),
    "float64_scalar": lambda lead, n, s: torch.tensor(0.25, dtype=torch.float64),
}


@st.composite
def attentions(draw) -> Call:
    torch.manual_seed(draw(st.integers(0, 10**6)))
    b, h = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    query_len, key_len = draw(st.integers(1, 70)), draw(st.integers(1, 140))
    dim = draw(st.one_of(st.integers(1, 96), st.sampled_from([160, 256, 511, 512])))
    layout = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))]
    q = layout(b, h, query_len, dim, torch.uint8)
    k, v = (layout(b, h, key_len, dim, torch.int8) for _ in range(2))
    mask = MASKS[draw(st.sampled_from(sorted(MASKS)))](q.shape[:-2], query_len, key_len)
    zero_point = torch.tensor(draw(st.integers(0, 255)))
    q_scale, k_scale, v_scale = (torch.tensor(draw(st.floats(1e-3, 0.05))) for _ in range(3))
    softmax_scale = draw(st.sampled_from([dim**-0.5, 0.01, 1.0]))
    bits = draw(st.integers(4, 8))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    operands = {"q": q, "k": k, "v": v, "mask": mask}
    scales = {"q_scale": q_scale, "q_zero_point": zero_point, "k_scale": k_scale, "v_scale": v_scale}
    numbers = {"softmax_scale": softmax_scale, "prob_bits": bits, "out_dtype": dtype}
    return Call("int_attention_vnni", operands | scales | numbers)
