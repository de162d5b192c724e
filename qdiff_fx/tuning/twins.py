"""The float network in which single layers are swapped for what they become in the q/dq graph."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx

from qdiff_fx.backends.base import quantized_layers, weight_of
from qdiff_fx.config import QDiffConfig
from qdiff_fx.convert import READS_REST
from qdiff_fx.excerpt import Excerpt, excerpt
from qdiff_fx.graph import get_attr_tensor
from qdiff_fx.numerics import fake_quantize, weight_range, weight_scales
from qdiff_fx.qparams import LayerInfo
from qdiff_fx.tuning.float_graph import all_values, without_observers
from qdiff_fx.tuning.units import Unit, convert_as, planned_layers


class Twins:
    """The float graph, and the quantized twin of each of its layers: activations as they will be, weights given.

    Args:
        prepared: an observed, calibrated graph.
        config: the configuration it was prepared with.
    """

    def __init__(self, prepared: fx.GraphModule, config: QDiffConfig):
        self.config = config
        self.float_graph = without_observers(prepared)
        # Every weight is given to the twins: its scales need no search here.
        self.qdq = convert_as(prepared, replace(config, weight_range="max"))
        self.layers = paired_layers(prepared, self.float_graph, self.qdq)
        self._by_name = {node.name: node for node in self.float_graph.graph.nodes}

    def on(self, tensors: list[Tensor]) -> Run:
        """Both on a batch: the flat inputs of the network, all of one timestep bin."""
        return Run(self, tensors)

    @cache  # noqa: B019, as long as its owner
    def twin(self, name: str) -> Excerpt:
        """The layer from float values and, if it has one, a float weight that stands for its codes."""
        layer = self.layers[name][1]
        weight = weight_of(layer)
        return excerpt(
            self.qdq, _result(layer), lambda node: node is weight or (node is not layer and node.name in self._by_name)
        )

    @cache  # noqa: B019
    def scales(self, name: str, bits: int) -> Tensor:
        """Scales of a layer's weight at so many bits."""
        node, layer = self.layers[name]
        method = self.config.weight_range
        return weight_scales(self._weight(node).float(), bits, axis=_axis(layer), method=method)

    def quantized_weight(self, name: str, bits: int) -> Tensor:
        """The layer's weight rounded to so many bits, float32."""
        node, layer = self.layers[name]
        scales = self.scales(name, bits)
        low, high = weight_range(bits)
        return fake_quantize(self._weight(node).float(), scales, 0, low, high, axis=_axis(layer))

    @cache  # noqa: B019
    def affected(self, layers: tuple[str, ...]) -> frozenset[fx.Node]:
        """These nodes of the float graph and all that depends on them."""
        found = {self._by_name[name] for name in layers}
        for node in self.float_graph.graph.nodes:
            if any(each in found for each in node.all_input_nodes):
                found.add(node)
        return frozenset(found)

    def _weight(self, node: fx.Node) -> Tensor:
        return get_attr_tensor(self.float_graph, node.args[1]).detach()  # type: ignore[arg-type]


class Run:
    """One batch: the float network's values, and its prediction with some layers quantized."""

    def __init__(self, twins: Twins, tensors: list[Tensor]):
        self.twins = twins
        self.values = all_values(twins.float_graph, tensors)
        self.prediction: Tensor = next(v for n, v in self.values.items() if n.op == "output")[0]  # type: ignore[index]

    def with_quantized(self, unit: Unit, bits: int) -> Tensor:
        """The prediction when `unit` alone is quantized. Only what comes after it is computed again."""
        affected = self.twins.affected(unit.layers)
        untouched = {node: value for node, value in self.values.items() if node not in affected}
        swapped = _Swapped(self.twins, unit, bits)
        with torch.no_grad():
            return swapped.run(initial_env=untouched)[0]


class _Swapped(fx.Interpreter):
    """Computes the layers of a unit by their twins."""

    def __init__(self, twins: Twins, unit: Unit, bits: int):
        super().__init__(twins.float_graph, garbage_collect_values=False)
        self.twins, self.unit, self.bits = twins, unit, bits
        self._names: dict[str, fx.Node] = twins._by_name

    def run_node(self, n: fx.Node) -> Any:
        if n.name not in self.unit.layers:
            return super().run_node(n)
        twin = self.twins.twin(n.name)
        # What the float graph does not know is the weight.
        values = [
            self.env[self._names[name]] if name in self._names else self.twins.quantized_weight(n.name, self.bits)
            for name in twin.inputs
        ]
        return twin.module(*values)[0]


def paired_layers(
    prepared: fx.GraphModule, float_graph: fx.GraphModule, qdq: fx.GraphModule
) -> dict[str, tuple[fx.Node, fx.Node]]:
    """Name of each quantized layer → its node in the float and in the q/dq graph."""
    names = [node.name for node in planned_layers(prepared)]
    by_name = {node.name: node for node in float_graph.graph.nodes}
    quantized = [node for node in quantized_layers(qdq) if node.meta["layer"].quantized and READS_REST not in node.meta]
    return {name: (by_name[name], layer) for name, layer in zip(names, quantized, strict=True)}


def _result(layer: fx.Node) -> fx.Node:
    """The layer, or the sum of both where its input has 16 bits."""
    for reader in layer.users:
        if any(READS_REST in each.meta for each in reader.all_input_nodes):
            return reader
    return layer


def _axis(layer: fx.Node) -> int:
    info: LayerInfo = layer.meta["layer"]
    return 1 if info.kind == "conv_transpose" else 0
