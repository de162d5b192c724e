"""Decide which tensors are quantized, at how many bits; write it on the nodes, change nothing else."""

from __future__ import annotations

from torch import fx

from qdiff_fx.config import LayerSettings, QDiffConfig
from qdiff_fx.errors import ConfigError
from qdiff_fx.ir import ops
from qdiff_fx.ir.annotations import nodes_with, path_of, put, value
from qdiff_fx.ir.edit import is_op
from qdiff_fx.ir.facts import ActivationPlan, LayerPlan, layer_id, new_layer_ids, whole_layer
from qdiff_fx.ir.shapes import same_sizes
from qdiff_fx.ir.widening import weight_source
from qdiff_fx.passes.framework import Change, Pass, PassReport, Refusal
from qdiff_fx.passes.quantize.boundary_layers import makes_prediction, reads_sample
from qdiff_fx.quant.qparams import SIXTEEN_BITS, LayerInfo, TensorSpec


class Annotate(Pass):
    """Writes a ``LayerPlan`` on every weight layer and attention, following the configuration's rules."""

    name = "annotate"
    requires = frozenset({"canonical"})
    ensures = frozenset({"annotated"})

    def __init__(self, config: QDiffConfig):
        self.config = config

    def run(self, gm: fx.GraphModule) -> PassReport:
        layers = [node for node in gm.graph.nodes if node.target in ops.WEIGHT_LAYERS or is_op(node, ops.ATTENTION)]
        ids = self._ids(layers)
        self._check_rules(ids)
        changes, refusals = [], []
        for node in layers:
            plan = self._plan(node, ids[node])
            put(node, plan)
            if plan.info.quantized:
                changes.append(Change(node.name, plan.info.path, f"{plan.info.kind} annotated"))
            else:
                refusals.append(Refusal(node.name, plan.info.path, plan.info.float_reason))
        return PassReport(self.name, tuple(changes), tuple(refusals))

    def _ids(self, layers: list[fx.Node]) -> dict[fx.Node, str]:
        """Ids are given once: a graph annotated anew keeps them."""
        known = {node: layer_id(node) for node in nodes_with(layers, LayerPlan)}
        return new_layer_ids(layers) | known

    def _check_rules(self, ids: dict[fx.Node, str]) -> None:
        paths = [_path(node, name) for node, name in ids.items()]
        for rule in self.config.rules:
            if not any(rule.matches(path, name) for path, name in zip(paths, ids.values(), strict=True)):
                raise ConfigError(
                    "the rule matches no layer of this network",
                    where=f"Rule({rule.pattern!r})",
                    fix=f"Layers have paths such as {', '.join(sorted(set(paths))[:4])}",
                )

    def _plan(self, node: fx.Node, name: str) -> LayerPlan:
        path = _path(node, name)
        if is_op(node, ops.ATTENTION):
            return _plan_attention(node, name, self.config.settings_for(path, name), self.config.quantize_attention)
        first = reads_sample(node)
        boundary = first or makes_prediction(node)
        settings = self.config.settings_for(path, name, at_boundary=boundary, reads_sample=first)
        return _plan_weight_layer(node, name, settings)


def _path(layer: fx.Node, name: str) -> str:
    """The path that rules match: of the layer's module, or its id where the network itself calls it as a function."""
    return path_of(layer) or whole_layer(name).partition("#")[0]


def _plan_weight_layer(node: fx.Node, name: str, settings: LayerSettings) -> LayerPlan:
    kind = ops.WEIGHT_LAYERS[node.target].kind
    reason = _weight_layer_refusal(node, settings)
    if reason:
        return LayerPlan(LayerInfo(name, kind, float_reason=reason), {})
    info = LayerInfo(name, kind, weight_bits=settings.weight_bits, act_bits=settings.act_bits)
    activation = ActivationPlan(TensorSpec(settings.act_bits), settings.act_range)
    return LayerPlan(info, {0: activation})


def _weight_layer_refusal(node: fx.Node, settings: LayerSettings) -> str:
    if not settings.quantize:
        return "a rule of the configuration keeps it in float"
    if weight_source(node.args[1]) is None:
        return "its weight is not a constant"
    if not value(node).is_floating_point():
        return "it does not compute in floating point"
    if ops.WEIGHT_LAYERS[node.target].kind == "conv_transpose" and len(node.args) > 6 and node.args[6] != 1:
        return "the weight of a grouped transposed convolution has no output-channel axis to scale along"
    return ""


def _plan_attention(node: fx.Node, name: str, settings: LayerSettings, enabled: bool) -> LayerPlan:
    reason = _attention_refusal(node, settings, enabled)
    if reason:
        return LayerPlan(LayerInfo(name, "attention", float_reason=reason), {})
    info = LayerInfo(name, "attention", act_bits=settings.act_bits, softmax_bits=settings.softmax_bits)
    query = ActivationPlan(TensorSpec(settings.act_bits), settings.act_range)
    # The kernel multiplies u8 by s8: the query and the probabilities are u8, keys and values s8.
    other = ActivationPlan(TensorSpec(settings.act_bits, signed=True, symmetric=True), settings.act_range)
    return LayerPlan(info, {0: query, 1: other, 2: other})


def _attention_refusal(node: fx.Node, settings: LayerSettings, enabled: bool) -> str:
    if not enabled:
        return "quantize_attention is off"
    if not settings.quantize:
        return "a rule of the configuration keeps it in float"
    if settings.act_bits == SIXTEEN_BITS:
        return f"attention has no {SIXTEEN_BITS}-bit activations"
    if len(node.args) > 5 and node.args[5]:
        return "causal attention is not supported"
    if node.kwargs.get("is_causal") or node.kwargs.get("enable_gqa"):
        return "causal or grouped-query attention is not supported"
    operands = [each for each in node.args[:3] if isinstance(each, fx.Node)]
    if len(operands) < 3:
        return "its operands are not tensors of the graph"
    shapes = [value(each).shape for each in operands]
    if not same_sizes(shapes[1], shapes[2]):
        return "its values have another size than its keys"
    if not all(same_sizes(shape[:-2], shapes[0][:-2]) for shape in shapes):
        return "its query, keys and values are broadcast"
    return ""
