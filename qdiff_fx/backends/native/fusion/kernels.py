"""The kernels' names, what a rule may assume of their calls, and how a call is put in another one's place.

All of a kernel's arguments are keyword arguments, so that a rule changes one by its name.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import fx

from qdiff_fx.ir import ops
from qdiff_fx.ir.annotations import any_value, describe_like, path_of
from qdiff_fx.ir.arguments import function_of
from qdiff_fx.kernels.activations import Activation
from qdiff_fx.kernels.checks import CODES

qdiff = torch.ops.qdiff

CONV, DEPTHWISE, LINEAR = qdiff.int_conv.default, qdiff.int_depthwise_conv.default, qdiff.int_linear.default
QUANTIZE, QUANTIZE_REST = qdiff.act_quantize.default, qdiff.act_quantize_rest.default
GROUP_NORM, LAYER_NORM = qdiff.group_norm_act.default, qdiff.layer_norm_act.default
ATTENTION = qdiff.int_attention_vnni.numbers
LAYERS = frozenset({CONV, DEPTHWISE, LINEAR})
QUANTIZERS = frozenset({QUANTIZE, QUANTIZE_REST})
NORMS = frozenset({GROUP_NORM, LAYER_NORM})

TO_ITSELF = "it adds a result to itself, and a layer's kernel is given what it adds before it has a result"
MANY = 3  # readers that a reason names

# The quantizer of a kernel that writes floats.
NO_QUANTIZER = {"scale": 1.0, "zero_point": 0, "low": 0, "high": 0}
NO_OUTPUT_QUANTIZER = {f"out_{name}": value for name, value in NO_QUANTIZER.items()}

# One scale for the whole tensor: these move codes as well as values.
MOVES = ops.MOVES_CODES


def is_open(node: object) -> TypeGuard[fx.Node]:
    """Whether `node` is a layer to whose result something can still be done: it writes floats, no activation yet."""
    if not isinstance(node, fx.Node) or node.target not in LAYERS:
        return False
    given: dict[str, Any] = node.kwargs
    return bool(given["activation"] == Activation.NONE and given["out_dtype"] not in CODES)


def replace_by_kernel(node: fx.Node, target: Any, kwargs: dict[str, Any]) -> fx.Node:
    """A call of a kernel in the place of `node`, described like it."""
    with node.graph.inserting_before(node):
        kernel = node.graph.call_function(target, kwargs=kwargs)
    describe_like(kernel, node, facts=True)
    node.replace_all_uses_with(kernel)
    node.graph.erase_node(node)
    return kernel


def fuse_into_epilogue(layer: fx.Node, last: fx.Node, **changes: Any) -> None:
    """The layer with changed arguments in the place of `last`, whose only input of interest it was."""
    with last.graph.inserting_before(last):
        fused = last.graph.call_function(function_of(layer), kwargs={**layer.kwargs, **changes})
    describe_like(fused, layer, value=any_value(last), facts=True)
    last.replace_all_uses_with(fused)
    last.graph.erase_node(last)
    layer.graph.erase_node(layer)


def read_elsewhere(what: str, node: fx.Node, *readers: fx.Node) -> str:
    """The reason that somebody other than `readers` reads `node`, by whom; empty when nobody does."""
    others = [_name(user) for user in node.users if user not in readers]
    if not others:
        return ""
    if len(others) > MANY:
        others[MANY - 1 :] = [f"{len(others) - MANY + 1} others"]
    return f"the {what} is also read by {' and '.join(filter(None, (', '.join(others[:-1]), others[-1])))}"


def read_in_floats(what: str, node: fx.Node) -> str:
    """The reason why `node`, which a quantizer reads, cannot write codes: somebody reads its floats, or other codes.

    It is the same whichever quantizer asks.
    """
    quantizers = [user for user in node.users if user.target is QUANTIZE]
    if len(quantizers) == len(node.users) > 1:
        return f"the {what} is quantized {len(quantizers)} times, each with a scale of its own"
    return read_elsewhere(what, node, *quantizers)


def layer_behind(quantize: fx.Node) -> fx.Node:
    """The first layer that reads a quantizer's codes; the quantizer itself where there is none."""
    pending = list(quantize.users)
    while pending:
        reader = pending.pop(0)
        if reader.target in LAYERS or reader.target is ATTENTION:
            return reader
        pending.extend(reader.users if reader.target in MOVES else ())
    return quantize


def _name(node: fx.Node) -> str:
    if node.op == "output":
        return "the network's output"
    operator = str(node.target).removesuffix(".default").removesuffix(".Tensor")
    path = path_of(node)
    return f"{operator} of {path}" if path else operator
