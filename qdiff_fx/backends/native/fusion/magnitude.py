"""How large the values of a lowered graph can get, whatever comes in: what decides which of them float16 holds.

A quantized input is clipped, so a layer's result is at most ``sum |weight| * largest input + |bias|``, and so is
whatever is made of such results. The bounds hold for every input, also one that calibration has not seen, and need
nothing but the graph. They are loose, by a factor of some ten behind a layer, which in trained networks still leaves
values far below 65504.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, fx

from qdiff_fx.backends.native.fusion.limits import WeightReach
from qdiff_fx.backends.native.fusion.look_up_scales import values_of
from qdiff_fx.ir import ops
from qdiff_fx.ir.annotations import fact, value_or_none
from qdiff_fx.ir.arguments import bound
from qdiff_fx.ir.edit import get_attr_tensor
from qdiff_fx.ir.ops import Kind, Layout
from qdiff_fx.kernels.activations import Activation
from qdiff_fx.kernels.checks import CODES

aten, qdiff = torch.ops.aten, torch.ops.qdiff
UNBOUNDED = math.inf
ROUNDING = 1.01  # of sums in float, and of attention's probabilities
# Elements of a group: n values of variance 1 reach sqrt(n - 1) where one of them outweighs all others. In larger groups
# than these one would still have to hold a good part of all that differs from the mean.
MOST_IN_A_NORM = 1 << 20

# The magnitude of the result is at most that of the largest argument.
SHRINKING = ops.where(
    lambda row: (
        row.layout is not Layout.NEW
        or row.kind in (Kind.POOLING, Kind.DROPOUT)
        or row.name
        in ("aten.upsample_nearest2d.vec", "aten.upsample_bilinear2d.vec", "aten.mean.dim", "aten.neg.default")
        or row.name in ("aten.relu.default", "aten.silu.default", "aten.gelu.default", "aten.mish.default")
    )
)
NUMBERS = ops.where(lambda row: row.kind in (Kind.SIZE, Kind.NUMBER) and row.name != "operator.getitem")
AT_MOST_ONE = ops.SOFTMAXES | ops.where(
    lambda row: row.name in {f"aten.{name}.default" for name in ("sin", "cos", "sigmoid", "tanh")}
)


class Magnitudes:
    """An upper bound of the magnitude of each float a lowered graph computes; infinite where there is none.

    Args:
        gm: the lowered graph.
    """

    def __init__(self, gm: fx.GraphModule):
        self._gm = gm
        self._known: dict[fx.Node, float] = {}

    def of(self, node: fx.Node) -> float:
        """The bound of one node's values."""
        # In execution order, as recursion would be as deep as the network.
        waiting = [node]
        while waiting:
            last = waiting[-1]
            missing = [] if last in self._known else [each for each in _read(last) if each not in self._known]
            if missing:
                waiting += missing
            else:
                waiting.pop()
                self._known.setdefault(last, self._bound(last))
        return self._known[node]

    def _bound(self, node: fx.Node) -> float:
        if node.op == "get_attr":
            return _largest(get_attr_tensor(self._gm, node))
        if node.op != "call_function":
            return UNBOUNDED
        if node.target in RULES:
            return RULES[node.target](self, node)
        if node.target in AT_MOST_ONE:
            return 1.0
        if node.target in SHRINKING or node.target is operator.getitem:
            return max((self._argument(each) for each in _tensors(node)), default=UNBOUNDED)
        return UNBOUNDED

    def _argument(self, argument: Any) -> float:
        if isinstance(argument, fx.Node):
            return self._known.get(argument, UNBOUNDED)
        return abs(argument) if isinstance(argument, (int, float)) else 0.0 if argument is None else UNBOUNDED

    def _sum(self, node: fx.Node) -> float:
        call = bound(node)
        return self._argument(call["self"]) + abs(_number(call.get("alpha", 1))) * self._argument(call["other"])

    def _product(self, node: fx.Node) -> float:
        left, right = (self._argument(each) for each in node.args[:2])
        return left * right if left and right else 0.0

    def _quotient(self, node: fx.Node) -> float:
        divisor = _number(node.args[1])
        # A tensor may be as small as it likes; its NaN would be lost where the larger of two bounds is taken.
        return self._argument(node.args[0]) / abs(divisor) if abs(divisor) > 0 else UNBOUNDED

    def _padded(self, node: fx.Node) -> float:
        return max(self._argument(node.args[0]), abs(_number(bound(node).get("value") or 0)))

    def _norm(self, node: fx.Node) -> float:
        call = bound(node)
        weight = 1.0 if call.get("weight") is None else self._argument(call["weight"])
        return math.sqrt(MOST_IN_A_NORM) * weight + self._argument(call.get("bias"))

    def _layer_norm(self, node: fx.Node) -> float:
        call = bound(node)
        weight = 1.0 if call.get("weight") is None else self._argument(call["weight"])
        x = value_or_none(call["x"]) if isinstance(call["x"], fx.Node) else None
        size = x.shape[-1] if x is not None else MOST_IN_A_NORM
        return math.sqrt(size if isinstance(size, int) else MOST_IN_A_NORM) * weight + self._argument(call.get("bias"))

    def _attention(self, node: fx.Node) -> float:
        """An average of the values."""
        return 128 * max(map(abs, self._numbers(node.kwargs["v_scale"]))) * ROUNDING

    def _dequantized(self, node: fx.Node) -> float:
        _, scale, zero_point, low, high, *_ = node.args
        ends = tuple(map(_number, (low, high)))
        rows: Iterator[tuple[float, float]] = zip(*self._rows(scale, zero_point), strict=True)
        return max(abs(s) * max(abs(end - z) for end in ends) for s, z in rows)

    def _float_layer(self, node: fx.Node) -> float:
        call = bound(node)
        weight: Any = call["weight"]
        if not isinstance(weight, fx.Node) or weight.op != "get_attr":
            return UNBOUNDED
        each = get_attr_tensor(self._gm, weight).flatten(1).abs().sum(1, dtype=torch.float64)
        return float(each.max()) * self._argument(call["input"]) + self._argument(call.get("bias"))

    def _looked_up(self, node: fx.Node) -> float:
        return self._argument(node.args[0])

    def _quantizer(self, node: fx.Node) -> float:
        x = self._argument(node.kwargs["x"])
        return x * x if node.kwargs["activation"] == Activation.GEGLU else x

    def _linear(self, node: fx.Node) -> float:
        call: dict[str, Any] = dict(node.kwargs)
        sources = [(call["codes"], call["scale"], call["zero_point"], weight) for weight in call["weights"]]
        return self._layer(node, sources)

    def _depthwise(self, node: fx.Node) -> float:
        call: dict[str, Any] = dict(node.kwargs)
        return self._layer(node, [(call["codes"], call["scale"], call["zero_point"], call["weight"])])

    def _conv(self, node: fx.Node) -> float:
        call: dict[str, Any] = dict(node.kwargs)
        names = ("codes", "scales", "zero_points", "weights")
        return self._layer(node, zip(*(call[name] for name in names), strict=True))

    def _layer(self, node: fx.Node, sources: Iterable[tuple[Any, Any, Any, fx.Node]]) -> float:
        """The activation functions of a kernel enlarge nothing; only the gates of geglu multiply."""
        if node.kwargs["out_dtype"] in CODES or node.kwargs["activation"] == Activation.GEGLU:
            return UNBOUNDED
        total: Any = 0.0
        for codes, scale, zero_point, weight in sources:
            reach = fact(weight, WeightReach)
            if reach is None:
                return UNBOUNDED
            low, high = _ends(codes)
            rows = zip(*self._rows(scale, zero_point), strict=True)
            total = total + reach.over([(s, low - z, high - z) for s, z in rows])
        bias: Any = node.kwargs["bias"]
        if bias is not None:
            total = total + get_attr_tensor(self._gm, bias).abs()
        added = self._argument(node.kwargs.get("shift")) + self._argument(node.kwargs.get("residual"))
        return (float(total.max()) + added) * ROUNDING

    def _rows(self, *numbers: Any) -> Iterator[list[float]]:
        """Each number's value in every row of its table, all equally long."""
        found = [self._numbers(each) for each in numbers]
        length = max(map(len, found))
        return (each if len(each) == length else each * length for each in found)

    def _numbers(self, number: Any) -> list[float]:
        """The values a number has over the rows of the table it is looked up in."""
        return [_number(each) for each in values_of(self._gm, number)]


RULES: dict[Any, Callable[[Magnitudes, fx.Node], float]] = {
    **dict.fromkeys((aten.add.Tensor, aten.sub.Tensor), Magnitudes._sum),
    aten.mul.Tensor: Magnitudes._product,
    aten.div.Tensor: Magnitudes._quotient,
    **dict.fromkeys(ops.PADS, Magnitudes._padded),
    **dict.fromkeys((aten.group_norm.default, qdiff.group_norm_act.default), Magnitudes._norm),
    aten.layer_norm.default: Magnitudes._norm,
    qdiff.layer_norm_act.default: Magnitudes._layer_norm,
    qdiff.int_attention_vnni.numbers: Magnitudes._attention,
    qdiff.int_conv.default: Magnitudes._conv,
    qdiff.int_depthwise_conv.default: Magnitudes._depthwise,
    qdiff.int_linear.default: Magnitudes._linear,
    qdiff.act_quantize.default: Magnitudes._quantizer,
    aten.embedding.default: Magnitudes._looked_up,
    torch.ops.quantized_decomposed.dequantize_per_tensor.default: Magnitudes._dequantized,
    **dict.fromkeys((ops.LINEAR, *ops.CONVS.values()), Magnitudes._float_layer),
}


# Of these the bound is not made of the bounds of all arguments.
READ_IN_PART: dict[Any, tuple[str, ...]] = {
    **dict.fromkeys((qdiff.int_conv.default, qdiff.int_linear.default), ("shift", "residual")),
    qdiff.int_depthwise_conv.default: ("residual",),
    **dict.fromkeys((ops.LINEAR, *ops.CONVS.values()), ("input", "bias")),
    **dict.fromkeys((qdiff.group_norm_act.default, aten.group_norm.default), ("weight", "bias")),
    **dict.fromkeys((qdiff.layer_norm_act.default, aten.layer_norm.default), ("weight", "bias")),
    aten.embedding.default: ("weight",),
    qdiff.int_attention_vnni.numbers: (),
    torch.ops.quantized_decomposed.dequantize_per_tensor.default: (),
}


def _read(node: fx.Node) -> list[fx.Node]:
    """The tensors whose bounds a node's depends on."""
    if node.target not in READ_IN_PART:
        return _tensors(node)
    call = bound(node)
    arguments = [call.get(name) for name in READ_IN_PART[node.target]]
    return [each for each in arguments if isinstance(each, fx.Node)]


def _tensors(node: fx.Node) -> list[fx.Node]:
    """The arguments that are not numbers, such as sizes; also those in lists."""
    return [each for each in node.all_input_nodes if each.target not in NUMBERS]


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _ends(codes: Any) -> tuple[int, int]:
    """The lowest and the highest code a layer may read."""
    while isinstance(codes, fx.Node) and codes.target in ops.MOVES_CODES:
        codes = codes.args[0]
    if isinstance(codes, fx.Node):
        for low, high in (("low", "high"), ("out_low", "out_high")):
            if isinstance(codes.kwargs.get(low), int) and codes.kwargs[low] != codes.kwargs[high]:
                return cast("tuple[int, int]", (codes.kwargs[low], codes.kwargs[high]))
    return 0, 255
