"""What comes right before a quantizer is done by it: activation functions, normalisation, the concat before that."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from qdiff_fx.backends.native.fusion.layers import (
    GROUP_NORM,
    LAYER_NORM,
    NO_QUANTIZER,
    QUANTIZE,
    QUANTIZERS,
    args_of,
    named,
)
from qdiff_fx.ir.edit import is_op
from qdiff_fx.kernels.integer import Activation

aten = torch.ops.aten
MAX_PARTS = 8  # kMaxParts of kernels.h


def absorb_inputs(gm: fx.GraphModule) -> None:
    """In place."""
    for node in list(gm.graph.nodes):
        if is_op(node, aten.group_norm.default):
            _replace_group_norm(node)
        elif is_op(node, aten.layer_norm.default):
            _replace_layer_norm(node)
    for node in [n for n in gm.graph.nodes if is_op(n, aten.silu.default)]:
        _into_group_norm(node)
    for node in [n for n in gm.graph.nodes if is_op(n, *QUANTIZERS)]:
        _absorb_activation(node)
        if is_op(node, QUANTIZE):
            _into_norm(node)
    for node in [n for n in gm.graph.nodes if is_op(n, aten.cat.default)]:
        _absorb_concat(node)


def only_user(node: Any, *, but: fx.Node) -> bool:
    return isinstance(node, fx.Node) and list(node.users) == [but]


def _replace_group_norm(node: fx.Node) -> None:
    x, groups, weight, bias, epsilon = [*args_of(node)[:5], *(None, None, 1e-5)[len(node.args) - 2 :]][:5]
    kwargs = {"parts": [x], "groups": groups, "weight": weight, "bias": bias, "epsilon": epsilon}
    _replace(node, GROUP_NORM, kwargs | {"activation": Activation.NONE.value, "out_dtype": torch.float32})


def _replace_layer_norm(node: fx.Node) -> None:
    x, shape, weight, bias, epsilon = [*args_of(node)[:5], *(None, None, 1e-5)[len(node.args) - 2 :]][:5]
    if len(shape) != 1:
        return
    kwargs = {"x": x, "weight": weight, "bias": bias, "epsilon": epsilon}
    _replace(node, LAYER_NORM, kwargs | {"out_dtype": torch.float32})


def _replace(node: fx.Node, target: Any, kwargs: dict[str, Any]) -> None:
    with node.graph.inserting_before(node):
        kernel = node.graph.call_function(target, kwargs={**kwargs, **NO_QUANTIZER})
    kernel.meta = dict(node.meta)
    node.replace_all_uses_with(kernel)
    node.graph.erase_node(node)


def _into_group_norm(silu: fx.Node) -> None:
    """``silu(group_norm(x))`` in one."""
    norm: Any = silu.args[0]
    if is_op(norm, GROUP_NORM) and only_user(norm, but=silu) and named(norm)["activation"] == Activation.NONE:
        norm.kwargs = {**norm.kwargs, "activation": Activation.SILU.value}
        silu.replace_all_uses_with(norm)
        silu.graph.erase_node(silu)


def _absorb_activation(quantize: fx.Node) -> None:
    """Activations are recomputed for every quantizer that reads them: cheaper than a pass over memory."""
    found = _activation(named(quantize)["x"])
    if found is None:
        return
    activation, source = found
    quantize.kwargs = {**quantize.kwargs, "x": source, "activation": activation.value}


def _activation(node: Any) -> tuple[Activation, fx.Node] | None:
    if is_op(node, aten.silu.default):
        return Activation.SILU, node.args[0]
    if is_op(node, aten.gelu.default):
        tanh = named(node).get("approximate", node.args[1] if len(node.args) > 1 else "none") == "tanh"
        return (Activation.GELU_TANH if tanh else Activation.GELU), node.args[0]
    if is_op(node, aten.mul.Tensor):
        source = _gated(*node.args) or _gated(*reversed(node.args))
        return (Activation.GEGLU, source) if source is not None else None
    return None


def _gated(value: Any, gate: Any) -> fx.Node | None:
    """The tensor of which `value` is the first half and `gate` the gelu of the second."""
    if not is_op(gate, aten.gelu.default) or len(gate.args) > 1 or gate.kwargs:
        return None
    halves = [half for half in (value, gate.args[0]) if is_op(half, operator.getitem)]
    if [half.args[1] for half in halves] != [0, 1] or halves[0].args[0] is not halves[1].args[0]:
        return None
    chunk = halves[0].args[0]
    if not is_op(chunk, aten.chunk.default) or chunk.args[1:] != (2, -1):
        return None
    source = chunk.args[0]
    even = source.meta["val"].shape[-1] % 2 == 0
    return source if even else None


def _into_norm(quantize: fx.Node) -> None:
    """``quantize(norm(x))`` in one, unless somebody else reads what is normalised."""
    norm = named(quantize)["x"]
    if not is_op(norm, GROUP_NORM, LAYER_NORM) or not only_user(norm, but=quantize):
        return
    kwargs = {name: named(quantize)[name] for name in ("out_dtype", *NO_QUANTIZER)}
    if named(quantize)["activation"] != Activation.NONE:
        if named(quantize)["activation"] != Activation.SILU or named(norm).get("activation") != Activation.NONE:
            return
        kwargs["activation"] = Activation.SILU.value
    with quantize.graph.inserting_before(quantize):
        fused = quantize.graph.call_function(norm.target, kwargs={**norm.kwargs, **kwargs})
    fused.meta = dict(norm.meta)
    quantize.replace_all_uses_with(fused)
    quantize.graph.erase_node(quantize)
    norm.graph.erase_node(norm)


def _absorb_concat(concat: fx.Node) -> None:
    """A concat of channels that only group norms read is never made."""
    tensors, dim = [*args_of(concat), 0][:2]
    readers = list(concat.users)
    if dim != 1 or len(tensors) > MAX_PARTS or not all(_reads_alone(reader, concat) for reader in readers):
        return
    for reader in readers:
        reader.kwargs = {**reader.kwargs, "parts": list(tensors)}
    if readers:
        concat.graph.erase_node(concat)


def _reads_alone(reader: fx.Node, concat: fx.Node) -> bool:
    return is_op(reader, GROUP_NORM) and named(reader)["parts"] == [concat]
