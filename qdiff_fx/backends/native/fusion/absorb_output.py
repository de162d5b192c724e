"""What comes right after an integer layer is done by it: sums, the activation function, the next quantizer."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import fx

from qdiff_fx.backends.common.running import computes
from qdiff_fx.backends.native.fusion.absorb_input import only_user
from qdiff_fx.backends.native.fusion.layers import CONV, LAYERS, LINEAR, QUANTIZE, call, named
from qdiff_fx.backends.native.fusion.numbers import ATTENTION_NUMBERS
from qdiff_fx.ir.edit import add_buffer, get_attr_tensor, is_op
from qdiff_fx.kernels.integer import CODES, Activation

aten = torch.ops.aten
PACKED_BLOCK = 64  # output channels that are packed together: kBlockChannels of kernels.h
WINDOW = ("kernel", "stride", "padding", "dilation", "enlarge", "out_channels")
SOURCES = ("codes", "scales", "zero_points", "weights", "weight_scales", "weight_sums")


def absorb_outputs(gm: fx.GraphModule) -> None:
    """In place."""
    for add in [n for n in gm.graph.nodes if is_op(n, aten.add.Tensor)]:
        _add_before_moves(add)
    for add in [n for n in gm.graph.nodes if is_op(n, aten.add.Tensor)]:
        _absorb_add(gm, add)
    for silu in [n for n in gm.graph.nodes if is_op(n, aten.silu.default)]:
        layer = silu.args[0]
        if _is_open(layer) and only_user(layer, but=silu):
            _move(layer, silu, {"activation": Activation.SILU.value})
    for quantize in [n for n in gm.graph.nodes if is_op(n, QUANTIZE)]:
        _write_codes(gm, quantize)


def _add_before_moves(add: fx.Node) -> None:
    """``moves(layer(…)) + x`` becomes ``moves(layer(…) + inverse_moves(x))``: then the layer can add it.

    On a channels-last image the moves between pixels and tokens, and their inverses, copy nothing.
    """
    left, right = add.args[:2]
    for moved, other in ((left, right), (right, left)):
        if not isinstance(other, fx.Node) or _shape(other) != _shape(add):
            continue
        moves = _moves_from_layer(moved, add)
        if not moves or any(_source_sizes(move) is None for move in moves):
            continue
        layer = moves[0].args[0]
        with add.graph.inserting_before(add):
            inverse = other
            for move in reversed(moves):
                inverse = _inverse(move, inverse)
            total = add.graph.call_function(aten.add.Tensor, (layer, inverse))
            total.meta = {"path": add.meta.get("path", ""), "val": layer.meta["val"]}
            result = total
            for move in moves:
                redone = call(add.graph, move.target, (result, *move.args[1:]))
                redone.meta = dict(move.meta)
                result = redone
        add.replace_all_uses_with(result)
        for replaced in (add, *reversed(moves)):
            add.graph.erase_node(replaced)
        return


def _moves_from_layer(node: Any, reader: fx.Node) -> list[fx.Node]:
    """The reshapes and permutations from an integer layer to `node`, nobody else reading any of them."""
    moves: list[fx.Node] = []
    while is_op(node, aten.reshape.default, aten.permute.default) and only_user(node, but=reader):
        moves.insert(0, node)
        node, reader = node.args[0], node
    return moves if _is_open(node) and only_user(node, but=reader) else []


def _inverse(move: fx.Node, value: fx.Node) -> fx.Node:
    source = move.args[0].meta["val"]
    graph = value.graph
    if is_op(move, aten.permute.default):
        order = [dim % source.dim() for dim in move.args[1]]
        node = graph.call_function(aten.permute.default, (value, [order.index(dim) for dim in range(len(order))]))
    else:
        sizes = _source_sizes(move)
        assert sizes is not None
        read = [
            graph.call_function(aten.sym_size.int, (value, size.dim)) if isinstance(size, _SizeOf) else size
            for size in sizes
        ]
        node = graph.call_function(aten.reshape.default, (value, read))
    node.meta = {"path": move.meta.get("path", ""), "val": source}
    return node


class _SizeOf(NamedTuple):
    """The size of that dim of a reshape's result."""

    dim: int


def _source_sizes(move: fx.Node) -> list[int | _SizeOf] | None:
    """Sizes to give the result of a reshape back the shape of its input; None when they cannot be told."""
    if is_op(move, aten.permute.default):
        return []
    source, result = move.args[0].meta["val"].shape, move.meta["val"].shape
    limit = min(len(source), len(result))
    leading = next((i for i in range(limit) if source[i] != result[i]), limit)
    trailing = next((i for i in range(limit - leading) if source[-1 - i] != result[-1 - i]), limit - leading)
    if len(source) - leading - trailing > 1:
        return None
    merged = [-1] * (len(source) - leading - trailing)
    ends = range(len(result) - trailing, len(result))
    return [*map(_SizeOf, range(leading)), *merged, *map(_SizeOf, ends)]


def _absorb_add(gm: fx.GraphModule, add: fx.Node) -> None:
    left, right = add.args[:2]
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node) or named(add).get("alpha", 1) != 1:
        return
    for layer, other in ((left, right), (right, left)):
        if not _is_open(layer) or not only_user(layer, but=add) or named(layer)["residual"] is not None:
            continue
        shift = _shift(layer, other)
        if shift is not None:
            _move(layer, add, {"shift": shift})
            return
        if _is_open(other) and only_user(other, but=add) and _same_window(layer, other):
            _merge(gm, layer, other, add)
            return
    for layer, other in ((right, left), (left, right)):  # the later one ends the sum
        if not _is_open(layer) or not only_user(layer, but=add) or named(layer)["residual"] is not None:
            continue
        if _shape(other) == _shape(add) == _shape(layer):
            _move(layer, add, {"residual": other})
            return


def _is_open(node: Any) -> bool:
    """A layer to which something can still be added."""
    return (
        is_op(node, *LAYERS) and named(node)["activation"] == Activation.NONE and named(node)["out_dtype"] not in CODES
    )


def _shape(node: fx.Node) -> Any:
    value = node.meta.get("val")
    return None if value is None else value.shape


def _shift(layer: fx.Node, other: fx.Node) -> fx.Node | None:
    """(N, O) when `other` is that, spread over the pixels of the convolution `layer`."""
    if not is_op(layer, CONV) or named(layer)["shift"] is not None:
        return None
    inner: Any = other
    for dim in (3, 2):
        if not is_op(inner, aten.unsqueeze.default) or inner.args[1] not in (dim, -1):
            return None
        inner = inner.args[0]
    value = inner.meta.get("val")
    fits = value is not None and value.dim() == 2 and value.shape[1] == named(layer)["out_channels"]
    return inner if fits else None


def _same_window(layer: fx.Node, other: fx.Node) -> bool:
    if not is_op(layer, CONV) or not is_op(other, CONV) or named(other)["residual"] is not None:
        return False
    plain = named(layer)["shift"] is None and named(other)["shift"] is None
    return plain and all(named(layer)[name] == named(other)[name] for name in WINDOW)


def _merge(gm: fx.GraphModule, layer: fx.Node, other: fx.Node, add: fx.Node) -> None:
    """Two convolutions of a sum become one of both sources: the halves of a split shortcut."""
    first, second = sorted((layer, other))
    changes: dict[str, Any] = {name: [*named(first)[name], *named(second)[name]] for name in SOURCES}
    changes["bias"] = _sum_of_biases(gm, first, second)
    computes(second, first, second)
    _move(second, add, changes)
    gm.graph.erase_node(first)


def _sum_of_biases(gm: fx.GraphModule, first: fx.Node, second: fx.Node) -> Any:
    biases = [named(node)["bias"] for node in (first, second) if named(node)["bias"] is not None]
    if len(biases) < 2:
        return biases[0] if biases else None
    total = get_attr_tensor(gm, biases[0]) + get_attr_tensor(gm, biases[1])
    with gm.graph.inserting_before(first):
        return gm.graph.get_attr(add_buffer(gm, f"{biases[0].target}_sum", total.detach()))


def _move(layer: fx.Node, to: fx.Node, changes: dict[str, Any]) -> None:
    """The layer, changed, in the place of `to`, whose only input of interest it was."""
    with to.graph.inserting_before(to):
        moved = call(to.graph, layer.target, kwargs={**layer.kwargs, **changes})
    moved.meta = {**layer.meta, "val": to.meta["val"]}
    to.replace_all_uses_with(moved)
    to.graph.erase_node(to)
    layer.graph.erase_node(layer)


def _write_codes(gm: fx.GraphModule, quantize: fx.Node) -> None:
    """``quantize(layer(…))`` in one, unless somebody else reads the layer's floats."""
    layer, activation = named(quantize)["x"], named(quantize)["activation"]
    if not isinstance(layer, fx.Node) or not only_user(layer, but=quantize):
        return
    changes = {f"out_{name}": named(quantize)[name] for name in ("scale", "zero_point", "low", "high")}
    changes["out_dtype"] = named(quantize)["out_dtype"]
    if is_op(layer, ATTENTION_NUMBERS):
        if activation == Activation.NONE and named(layer)["out_dtype"] not in CODES:
            _move(layer, quantize, changes)
    elif _is_open(layer) and activation == Activation.GEGLU:
        halves = _gated_halves(gm, layer)
        if halves:
            _move(layer, quantize, changes | halves)
    elif _is_open(layer):
        _move(layer, quantize, changes | {"activation": activation})


def _gated_halves(gm: fx.GraphModule, layer: fx.Node) -> dict[str, Any]:
    """The changes that make a linear layer one of values and gates; none where its weight cannot be cut there."""
    features = named(layer).get("out_features", 1)
    if not is_op(layer, LINEAR) or features % (2 * PACKED_BLOCK) or named(layer)["residual"] is not None:
        return {}
    changes: dict[str, Any] = {"activation": Activation.GEGLU.value, "out_features": features // 2}
    for name in ("weights", "weight_scales", "weight_sums"):
        (node,) = named(layer)[name]
        with gm.graph.inserting_before(layer):
            changes[name] = [
                gm.graph.get_attr(add_buffer(gm, f"{node.target}_{half}", tensor))
                for half, tensor in zip(("values", "gates"), get_attr_tensor(gm, node).chunk(2), strict=True)
            ]
    return changes
