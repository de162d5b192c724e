"""The parts a layer over several chunks is split into, and what must hold for them to add up to it."""

from __future__ import annotations

import torch
from torch import fx

from qdiff_fx.ir.annotations import fact, put, require, value
from qdiff_fx.ir.arguments import function_of, operand
from qdiff_fx.ir.constants import share_buffer
from qdiff_fx.ir.edit import get_attr_tensor, insert_call, insert_get_attr
from qdiff_fx.ir.facts import Part
from qdiff_fx.ir.shapes import is_tensor
from qdiff_fx.ir.widening import insert_widening, is_widened, weight_source
from qdiff_fx.passes.rule import replace_node
from qdiff_fx.passes.split_shortcut.channel_flow import input_dim, weight_dim

aten = torch.ops.aten


def split_layer(gm: fx.GraphModule, layer: fx.Node, inputs: list[fx.Node]) -> str:
    """Replace `layer` by one part per input, summed from left to right; the last part holds the bias.

    Each part reads its own slice of the weight, a new buffer, and is marked as a `Part`.
    Returns a description of the change.
    """
    dim, start = input_dim(layer), 0
    total: fx.Node | None = None
    for index, chunk in enumerate(inputs):
        end = start + value(chunk).shape[dim]
        part = _part(gm, layer, chunk, (start, end), with_bias=index == len(inputs) - 1)
        total = part if total is None else insert_call(gm.graph, layer, aten.add.Tensor, (total, part))
        start = end
    assert total is not None
    replace_node(layer, total)
    return f"split into {len(inputs)} parts of {start} channels"


def _part(gm: fx.GraphModule, layer: fx.Node, chunk: fx.Node, channels: tuple[int, int], *, with_bias: bool) -> fx.Node:
    weight = _weight_slice(gm, layer, channels)
    bias = layer.args[2] if with_bias else None
    args = (chunk, weight, bias, *layer.args[3:])
    part = insert_call(gm.graph, layer, function_of(layer), args, layer.kwargs)
    # A part of a part keeps naming the whole layer's channels.
    whole = fact(layer, Part) or Part((0, 0), layer.name)
    offset = whole.channels[0]
    put(part, Part((offset + channels[0], offset + channels[1]), whole.split_of))
    return part


def _weight_slice(gm: fx.GraphModule, layer: fx.Node, channels: tuple[int, int]) -> fx.Node:
    source, (start, end) = weight_source(layer.args[1]), channels
    assert source is not None
    piece = get_attr_tensor(gm, source).detach().narrow(weight_dim(layer), start, end - start)
    widened = is_widened(layer.args[1])
    if not widened:
        # Contiguous, for who reads it as it is. Widening makes it so at each call, and the parts are all of the weight:
        # views of that take nothing beside the network.
        piece = piece.clone(memory_format=torch.contiguous_format)
    read = insert_get_attr(gm, layer, share_buffer(gm, f"{source.target}_split_{start}_{end}", piece))
    return insert_widening(read, layer) if widened else read


def bad_parts(name: str, parts: list[fx.Node]) -> list[str]:
    """What keeps the parts of the layer called `name` from adding up to it; empty when nothing does."""
    parts = sorted(parts, key=lambda part: require(part, Part).channels)
    start, problems = 0, []
    for part in parts:
        first, end = require(part, Part).channels
        if first != start:
            problems.append(f"the parts of {name} leave out or repeat channels {start} to {first}")
        if is_tensor(part.args[1]) and value(operand(part, 1)).shape[weight_dim(part)] != end - first:
            problems.append(f"{part.name} has a weight that is not of channels {first} to {end}")
        start = end
    if any(part.args[2] is not None for part in parts[:-1]):
        problems.append(f"the bias of {name} is not on its last part alone")
    return problems
