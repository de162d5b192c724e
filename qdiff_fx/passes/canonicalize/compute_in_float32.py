"""Networks of half or double precision compute in float32, whose sums and norms the kernels and the oracle share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

import qdiff_fx.kernels  # noqa: F401, registers the operator asked for here
from qdiff_fx.ir import ops
from qdiff_fx.ir.annotations import any_value, describe_like, dtypes_of, set_value, value_or_none
from qdiff_fx.ir.edit import get_attr_tensor, replace_tensor
from qdiff_fx.ir.facts import is_timestep
from qdiff_fx.ir.ops import Kind
from qdiff_fx.ir.widening import HALF_TYPES, insert_widening, is_widened
from qdiff_fx.passes.framework import Change, Pass, PassReport

aten = torch.ops.aten

HALF = {**dict.fromkeys(HALF_TYPES, torch.float32), torch.complex32: torch.complex64}
DOUBLE = {torch.float64: torch.float32, torch.complex128: torch.complex64}
WEIGHT_LAYERS = ops.where(lambda row: row.kind is Kind.LAYER)  # in every spelling
LAYERS = WEIGHT_LAYERS | ops.where(lambda row: row.kind is Kind.ATTENTION)
Types = dict[torch.dtype, torch.dtype]


class ComputeInFloat32(Pass):
    """Whatever layers compute with becomes float32; inputs and outputs keep the network's own types.

    Weights of float16 or bfloat16 are held as they are, and widened in front of each layer, which is exact
    (`ir/widening.py`). All else, which is little, is held in float32. float64 gives way only where layers compute in
    it: an embedding in float64 inside a float32 network stays. What is made of the timestep before the first layer
    stays in its own type too: there a rounding moves the phase of an embedding, and the network was trained with it.
    """

    name = "compute_in_float32"

    def run(self, gm: fx.GraphModule) -> PassReport:
        types = _types_to_replace(gm)
        if not types:
            return PassReport(self.name)
        kept = _made_of_the_timestep(gm)
        before = {node: _dtype(node) for node in gm.graph.nodes}
        changed = _widen_weights(gm, types, kept)
        for node in list(gm.graph.nodes):
            if node.op == "output":
                changed += _cast_outputs(node, before)
            elif node in kept or node.op == "placeholder":
                changed += _cast_for_others(node, types, kept)
            elif node.op != "get_attr" and not _is_final_cast(node):
                changed += _compute(node, types)
        _drop_casts(gm.graph, before)
        return PassReport(self.name, (Change("", "", f"{changed} values of {_names(types)}"),) if changed else ())


def _types_to_replace(gm: fx.GraphModule) -> Types:
    """What layers of half or double precision make of the types; empty where all compute in float32."""
    layers = dtypes_of([node for node in gm.graph.nodes if _is_layer(node)])
    weights = dtypes_of([node for node in gm.graph.nodes if node.op == "get_attr"])
    types: Types = {}
    if (layers | weights) & HALF.keys():
        types |= HALF
    if layers & DOUBLE.keys():
        types |= DOUBLE
    return types


def _made_of_the_timestep(gm: fx.GraphModule) -> set[fx.Node]:
    """Calls that read the timestep, and neither another input nor a layer's result; and the constants they read."""
    made: set[fx.Node] = set()
    constant: set[fx.Node] = set()
    for node in gm.graph.nodes:
        sources = [each for each in ops.read_by_value(node) if each not in constant]
        free = node.op == "get_attr" or (node.op == "call_function" and not _is_layer(node))
        if isinstance(any_value(node), (int, torch.SymInt)) or (free and not sources):
            constant.add(node)
        elif (node.op == "placeholder" and is_timestep(node)) or (free and made.issuperset(sources)):
            made.add(node)
    return made | _read_by(made, constant)


def _read_by(readers: set[fx.Node], among: set[fx.Node]) -> set[fx.Node]:
    """Those of some nodes that others depend on through nothing but such."""
    found: set[fx.Node] = set()
    pending = list(readers)
    while pending:
        near = [each for each in pending.pop().all_input_nodes if each in among and each not in found]
        found.update(near)
        pending += near
    return found


def _widen_weights(gm: fx.GraphModule, types: Types, kept: set[fx.Node]) -> int:
    """Weights of layers are widened where these read them, every other tensor once, whichever nodes read it.

    Those of the timestep's embedding are left.
    """
    constants = [node for node in gm.graph.nodes if node.op == "get_attr"]
    left = {str(node.target) for node in kept if node.op == "get_attr"}
    held = {str(node.target) for node in constants if _dtype(node) in HALF_TYPES}
    held -= {str(node.target) for node in constants if not all(_reads_weight(user, node) for user in node.users)}
    wide: dict[tuple[int, ...], Tensor] = {}
    count = 0
    for node in constants:
        if str(node.target) in left:
            continue
        if str(node.target) in held:
            count += _widen_for_layers(node)
            continue
        tensor = get_attr_tensor(gm, node)
        if tensor.dtype in types:
            key = (tensor.data_ptr(), tensor.storage_offset(), *tensor.shape, *tensor.stride())
            if key not in wide:
                wide[key] = _like(tensor, tensor.detach().to(types[tensor.dtype]))
            replace_tensor(gm, str(node.target), wide[key])
            count += 1
        set_value(node, _widened(any_value(node), types))
    return count


def _reads_weight(user: fx.Node, node: fx.Node) -> bool:
    """Whether a reader of a tensor is a layer whose weight it is, or what widens it for such layers."""
    if is_widened(user):
        return True
    return user.target in WEIGHT_LAYERS and [at for at, each in enumerate(user.args) if each is node] == [1]


def _widen_for_layers(weight: fx.Node) -> int:
    """Anew for each layer, so that what one has read need not wait for the next; returns whether there is any."""
    layers = [user for user in weight.users if not is_widened(user)]
    for layer in layers:
        layer.update_arg(1, insert_widening(weight, layer))
    return int(bool(layers))


def _like(tensor: Tensor, values: Tensor) -> Tensor:
    return nn.Parameter(values, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values


def _compute(node: fx.Node, types: Types) -> int:
    """A call computes in float32, now that its arguments are; returns whether it did not before."""

    def wide(argument: Any) -> Any:
        return types.get(argument, argument) if isinstance(argument, torch.dtype) else argument

    node.args = fx.node.map_aggregate(node.args, wide)
    node.kwargs = fx.node.map_aggregate(node.kwargs, wide)
    if node.target is aten._softmax.default:
        node.args = (*node.args[:2], False)  # from half precision to float32
    before = any_value(node)
    set_value(node, _widened(before, types))
    return int(any_value(node) is not before)


def _cast_for_others(node: fx.Node, types: Types, kept: set[fx.Node]) -> int:
    """An input, or a value that stays in its type, is cast for those that compute in float32."""
    known = value_or_none(node)
    readers = [user for user in node.users if user not in kept and user.op != "output"]
    if known is None or known.dtype not in types or not any(_reads_type(user, node, types) for user in readers):
        return 0
    dtype = types[known.dtype]
    with node.graph.inserting_after(node):
        cast = node.graph.call_function(aten.to.dtype, (node, dtype))
    describe_like(cast, node, value=known.to(dtype))
    for user in readers:
        user.replace_input_with(node, cast)
    return 1


def _reads_type(user: fx.Node, node: fx.Node, types: Types) -> bool:
    """Whether a reader is more than the cast that an earlier run of the pass put there, or a bin's number."""
    if user.target is torch.ops.qdiff.timestep_bin.default:
        return False
    known = value_or_none(node)
    return not (known is not None and user.target is aten.to.dtype and user.args[1:] == (types[known.dtype],))


def _cast_outputs(output: fx.Node, before: dict[fx.Node, torch.dtype | None]) -> int:
    """What the network returns has the type it had."""
    count = 0

    def cast(node: fx.Node) -> fx.Node:
        nonlocal count
        known, wanted = value_or_none(node), before.get(node)
        if known is None or wanted is None or known.dtype == wanted:
            return node
        count += 1
        with output.graph.inserting_before(output):
            made = output.graph.call_function(aten.to.dtype, (node, wanted))
        describe_like(made, node, value=known.to(wanted))
        return made

    output.args = fx.map_arg(output.args, cast)
    return count


def _is_final_cast(node: fx.Node) -> bool:
    """Whether a cast is there for the network's result alone."""
    return node.target is aten.to.dtype and bool(node.users) and all(user.op == "output" for user in node.users)


def _drop_casts(graph: fx.Graph, before: dict[fx.Node, torch.dtype | None]) -> None:
    """Casts that changed a type and change none any more: a dead one would read codes that lowering frees."""
    for node in graph.nodes:
        if node.target not in ops.CASTS or before.get(node) is None:
            continue
        source = node.args[0]
        known, was = value_or_none(node), before.get(source)
        if known is not None and was != before[node] and isinstance(source, fx.Node) and _dtype(source) == known.dtype:
            node.replace_all_uses_with(source)


def _widened(known: Any, types: Types) -> Any:
    """A fake value, or a tuple of them, in the wide types; the very same where nothing is to be done."""
    parts: Iterable[Any] = known if isinstance(known, (tuple, list)) else (known,)
    if not any(isinstance(each, Tensor) and each.dtype in types for each in parts):
        return known

    def wide(each: Any) -> Any:
        return each.to(types.get(each.dtype, each.dtype)) if isinstance(each, Tensor) else each

    return tree_map(wide, known)


def _is_layer(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in LAYERS


def _dtype(node: fx.Node) -> torch.dtype | None:
    known = value_or_none(node)
    return None if known is None else known.dtype


def _names(types: Types) -> str:
    return " and ".join(sorted(str(each).removeprefix("torch.") for each in types if not each.is_complex))
