"""The legal graph of every stage between capture and backends, written down, and what in a graph departs from it.

Each check is one walk over the nodes: it costs next to nothing beside the pass whose result it looks at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import fx

from qdiff_fx.ir import ops
from qdiff_fx.ir.annotations import FACTS, Fact, fact, nodes_with
from qdiff_fx.ir.facts import LayerPlan, Observed, QuantizedLayer, WeightCodes, layer_id
from qdiff_fx.ir.widening import is_widened

PLAIN = frozenset({"placeholder", "get_attr", "call_function", "output"})
OBSERVED = PLAIN | {"call_module"}  # an observer is a module
ON_CODES = frozenset({"quantized_decomposed", "qdiff"})
KERNELS = frozenset({"onednn", "quantized"})  # what backends lower to

Facts = Mapping[type[Fact], Fact]  # what one node carries, by kind


@dataclass(frozen=True)
class Stage:
    """What a graph is made of at one stage.

    Attributes:
        node_ops: kinds of nodes there may be.
        foreign: namespaces of operators there may not be.
        layer: what every weight layer and attention carries.
        gone: facts of earlier stages that no node carries any more.
        more: lists what is wrong with one layer beyond that.
    """

    node_ops: frozenset[str] = PLAIN
    foreign: frozenset[str] = frozenset()
    layer: type[Fact] | None = None
    gone: tuple[type[Fact], ...] = ()
    more: Callable[[fx.Node, Facts], Iterator[str]] = lambda node, carried: iter(())


def _wrongly_observed(node: fx.Node, carried: Facts) -> Iterator[str]:
    """Every input that is to be quantized is read through an observer."""
    plan = carried.get(LayerPlan)
    if not isinstance(plan, LayerPlan) or not plan.info.quantized:
        return
    if Observed not in carried:
        yield f"{node.name} is to be quantized and is not observed"
    for index in plan.inputs:
        source = node.args[index]
        if not isinstance(source, fx.Node) or source.op != "call_module":
            yield f"input {index} of {node.name} is not read through an observer"


def _wrongly_quantized(node: fx.Node, carried: Facts) -> Iterator[str]:
    """The weight of a quantized layer is dequantized from codes of as many bits as its info says."""
    layer = carried.get(QuantizedLayer)
    if not isinstance(layer, QuantizedLayer) or not layer.info.quantized or layer.info.kind == "attention":
        return
    codes = _weight_codes(node)
    if codes is None:
        yield f"the weight of {node.name} is not dequantized from codes"
    elif codes.bits != layer.info.weight_bits:
        yield f"the weight of {node.name} has {codes.bits} bits where its layer says {layer.info.weight_bits}"


def _weight_codes(layer: fx.Node) -> WeightCodes | None:
    weight: object = layer.args[1] if len(layer.args) > 1 else None
    while isinstance(weight, fx.Node) and weight.op == "call_function" and weight.args:
        weight = weight.args[0]  # behind a cast, and the dequantize node
    return fact(weight, WeightCodes) if isinstance(weight, fx.Node) else None


STAGES: dict[str, Stage] = {
    # What export made of the network: ATen, functional, every node with a value.
    "captured": Stage(foreign=KERNELS),
    # One spelling per operation. It stays so while observers are inserted.
    "canonical": Stage(OBSERVED, KERNELS),
    # Every layer knows its id and what is to become of it; the graph still computes in float.
    "annotated": Stage(OBSERVED, ON_CODES | KERNELS, LayerPlan, gone=(QuantizedLayer,)),
    # Every input that is to be quantized is watched.
    "observed": Stage(OBSERVED, ON_CODES | KERNELS, LayerPlan, gone=(QuantizedLayer,), more=_wrongly_observed),
    # Codes and what dequantizes them; no observer is left, and no plan.
    "quantized": Stage(PLAIN, KERNELS, QuantizedLayer, gone=(LayerPlan, Observed), more=_wrongly_quantized),
}


def illegal(gm: fx.GraphModule, name: str) -> list[str]:
    """What in `gm` departs from the legal graph of the stage `name`; empty for what is no stage."""
    stage = STAGES.get(name)
    if stage is None:
        return []
    problems = [problem for node in gm.graph.nodes for problem in _problems(node, stage)]
    ids = Counter(layer_id(node) for node in nodes_with(gm, stage.layer)) if stage.layer is not None else Counter()
    return problems + [f"{count} layers have the id {each}" for each, count in ids.items() if count > 1]


def _problems(node: fx.Node, stage: Stage) -> Iterator[str]:
    if node.op not in stage.node_ops:
        yield f"{node.name} is a {node.op}: it still calls {node.target}"
    if _namespace(node) in stage.foreign and not is_widened(node):
        yield f"{node.name} calls {node.target}, which has no place yet"
    if _makes_tensor(node) and node.meta.get("val") is None:
        yield f"{node.name} has no value"
    carried: Facts = node.meta.get(FACTS, {})
    if stage.layer is not None and _is_layer(node) and stage.layer not in carried:
        yield f"the layer {node.name} carries no {stage.layer.__name__}"
    for kind in stage.gone:
        if kind in carried:
            yield f"{node.name} still carries a {kind.__name__}"
    if stage.layer in carried:
        yield from stage.more(node, carried)


def _namespace(node: fx.Node) -> str:
    return node.target.namespace if isinstance(node.target, torch._ops.OpOverload) else ""


def _is_layer(node: fx.Node) -> bool:
    return node.op == "call_function" and (node.target in ops.WEIGHT_LAYERS or node.target is ops.ATTENTION)


def _makes_tensor(node: fx.Node) -> bool:
    """Whether a call is known to return one tensor. Numbers, tuples and Python functions need not have a value."""
    return isinstance(node.target, torch._ops.OpOverload) and _returns_tensor(node.target)


@cache
def _returns_tensor(target: torch._ops.OpOverload) -> bool:
    returns = target._schema.returns
    return len(returns) == 1 and str(returns[0].type) == "Tensor"
