"""One spelling per linear layer: `linear(x, W, b)` with W (out, in) read straight from a parameter or buffer."""

from __future__ import annotations

import torch
from torch import fx

from qdiff_fx.ir import ops
from qdiff_fx.ir.annotations import path_of, value
from qdiff_fx.ir.arguments import bound, function_of, operand
from qdiff_fx.ir.constants import evaluate, is_constant, share_buffer
from qdiff_fx.ir.edit import ancestors, insert_call, insert_get_attr, is_op
from qdiff_fx.ir.shapes import is_tensor
from qdiff_fx.passes.rule import Rule, replace_node

aten = torch.ops.aten


class MatmulToLinear(Rule[fx.Node]):
    """`matmul(x, W)` with a constant W (in, out) → `linear(x, Wᵀ)`."""

    targets = frozenset({aten.matmul.default})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return node if is_constant(node.args[1]) and not is_constant(node.args[0]) else None

    def refuse(self, gm: fx.GraphModule, found: fx.Node) -> str:
        rank = value(operand(found, 1)).dim()
        return "" if rank == 2 else f"the constant factor has {rank} dimensions, a linear weight has 2"

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        weight = _transposed_weight(gm, operand(found, 1), found)
        found.target = aten.linear.default
        found.args = (operand(found), weight, None)
        return "aten.matmul.default with a constant → aten.linear.default"


class AddmmToLinear(Rule[fx.Node]):
    """`addmm(b, x, W)` with constant b (out,) and W (in, out) → `linear(x, Wᵀ, b)`."""

    targets = frozenset({aten.addmm.default})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return node

    def refuse(self, gm: fx.GraphModule, found: fx.Node) -> str:
        call = bound(found)
        if not is_constant(call["mat2"]):
            return "the weight is not a constant"
        for name in ("alpha", "beta"):
            if call[name] != 1:
                return f"{name} is {call[name]}, not 1"
        if call["self"].op != "get_attr" or value(call["self"]).dim() != 1:
            return "the bias is not a parameter of one dimension"
        if value(call["self"]).shape[0] != value(call["mat2"]).shape[1]:
            return "the bias is stretched over the output channels"
        return ""

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        call = bound(found)
        weight = _transposed_weight(gm, call["mat2"], found)
        found.target = aten.linear.default
        found.args, found.kwargs = (call["mat1"], weight, call["self"]), {}
        return "aten.addmm.default → aten.linear.default"


class AddToBias(Rule[tuple[fx.Node, fx.Node]]):
    """`linear(x, W) + b` with a parameter b (out,) → `linear(x, W, b)`."""

    targets = frozenset({aten.add.Tensor})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
        if len(node.args) != 2 or node.kwargs:
            return None
        for product, bias in (node.args, node.args[::-1]):
            if is_op(product, aten.linear.default) and is_tensor(bias) and _is_bias(product, bias):
                return node, bias
        return None

    def rewrite(self, gm: fx.GraphModule, found: tuple[fx.Node, fx.Node]) -> str:
        node, bias = found
        product = next(arg for arg in node.all_input_nodes if arg is not bias)
        args = (operand(product), operand(product, 1), bias)
        made = insert_call(gm.graph, node, aten.linear.default, args, like=product)
        replace_node(node, made)
        return "an added parameter became the bias"


class FullLinearArguments(Rule[fx.Node]):
    """`linear(x, W)` → `linear(x, W, None)`."""

    targets = frozenset({aten.linear.default})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return None if len(node.args) == 3 and not node.kwargs else node

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        call = bound(found)
        found.args, found.kwargs = (call["input"], call["weight"], call["bias"]), {}
        return "every argument written out"


class FoldWeight(Rule[fx.Node]):
    """A weight computed from parameters alone (weight norm, standardised weights) → one buffer."""

    targets = frozenset(ops.WEIGHT_LAYERS)

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        weight = operand(node, 1)
        return node if weight.op != "get_attr" and is_constant(weight) else None

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        weight = operand(found, 1)
        path = path_of(found)
        name = f"{path}.weight_folded" if path else "weight_folded"
        name = share_buffer(gm, name, evaluate(gm, weight).contiguous())
        found.replace_input_with(weight, insert_get_attr(gm, found, name))
        return f"the weight computed by {weight.target} became the buffer {name}"


class FoldBias(Rule[fx.Node]):
    """A bias computed from parameters alone → one buffer."""

    targets = frozenset(ops.WEIGHT_LAYERS)

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        bias = _bias(node)
        return node if bias is not None and bias.op != "get_attr" and is_constant(bias) else None

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        bias, path = _bias(found), path_of(found)
        assert bias is not None
        name = share_buffer(gm, f"{path}.bias_folded" if path else "bias_folded", evaluate(gm, bias).contiguous())
        found.update_arg(2, insert_get_attr(gm, found, name))
        return f"the bias computed by {bias.target} became the buffer {name}"


class BiasToAdd(Rule[fx.Node]):
    """`layer(x, W, b)` with a computed b (out,) → `layer(x, W) + b`, spread over the dimensions behind the channels."""

    targets = frozenset(ops.WEIGHT_LAYERS)

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        bias = _bias(node)
        return node if bias is not None and not is_constant(bias) else None

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        bias = _bias(found)
        assert bias is not None
        args = (*found.args[:2], None, *found.args[3:])
        layer = insert_call(gm.graph, found, function_of(found), args, found.kwargs)
        for _ in range(ops.WEIGHT_LAYERS[found.target].dims):
            bias = insert_call(gm.graph, found, aten.unsqueeze.default, (bias, -1))
        replace_node(found, insert_call(gm.graph, found, aten.add.Tensor, (layer, bias)))
        return "the computed bias is added behind the layer"


def _bias(layer: fx.Node) -> fx.Node | None:
    bias = layer.args[2] if len(layer.args) > 2 else None
    return bias if isinstance(bias, fx.Node) else None


def _is_bias(product: fx.Node, bias: fx.Node) -> bool:
    """Whether `bias` is a parameter with one element per output channel and `product` may take it in."""
    weight = operand(product, 1)
    if bias.op != "get_attr" or not is_tensor(weight) or len(product.users) != 1:
        return False
    same_type = value(bias).dtype == value(product).dtype
    return bound(product)["bias"] is None and same_type and value(bias).shape == value(weight).shape[:1]


def _transposed_weight(gm: fx.GraphModule, weight: fx.Node, before: fx.Node) -> fx.Node:
    """A get_attr of the constant `weight` (in, out) as (out, in)."""
    if is_op(weight, aten.permute.default) and operand(weight).op == "get_attr":
        return operand(weight)
    name = share_buffer(gm, f"{_origin(weight)}_transposed", evaluate(gm, weight).t().contiguous())
    return insert_get_attr(gm, before, name)


def _origin(weight: fx.Node) -> str:
    """The name of a parameter the constant is made from."""
    sources = [node for node in (weight, *ancestors(weight)) if node.op == "get_attr"]
    return min((str(node.target) for node in sources), default="constant")
