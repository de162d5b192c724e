"""The float network in which single layers are swapped for what they become in the q/dq graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, fx

from qdiff_fx.backends.common.base import weight_of
from qdiff_fx.config import Rule
from qdiff_fx.ir.annotations import fact
from qdiff_fx.ir.arguments import operand
from qdiff_fx.ir.edit import get_attr_tensor
from qdiff_fx.ir.facts import QuantizedLayer, layer_info, quantized_layers
from qdiff_fx.ir.subgraph import Subgraph, subgraph
from qdiff_fx.networks import PreparedUNet
from qdiff_fx.passes.quantize.nearest import weight_scales
from qdiff_fx.quant.numerics import fake_quantize, weight_range
from qdiff_fx.quant.qparams import SIXTEEN_BITS
from qdiff_fx.tuning.choice import Choice
from qdiff_fx.tuning.float_graph import all_values, without_observers
from qdiff_fx.tuning.units import Unit, convert_as, planned_layers, units_of


class LayerSubstitution:
    """The float graph, and the quantized form of each of its layers: activations as they will be, weights given.

    Args:
        prepared: a calibrated network.
    """

    def __init__(self, prepared: PreparedUNet):
        self.config = prepared.qconfig
        self.float_graph = without_observers(prepared.graph_module)
        self._prepared = prepared
        self._by_name: dict[str, fx.Node] = {node.name: node for node in self.float_graph.graph.nodes}

    def on(self, tensors: list[Tensor]) -> Run:
        """Both on a batch: the flat inputs of the network, all of one timestep bin."""
        return Run(self, tensors)

    def float_node(self, name: str) -> fx.Node:
        """A layer in the float graph."""
        return self._by_name[name]

    def quantized_node(self, name: str, *, wide: bool = False) -> fx.Node:
        """A layer in the q/dq graph in which inputs have bits as configured, or 16 where they can."""
        return self._quantized(wide).layers[name]

    def quantized_subgraph(
        self, node: fx.Node, is_given: Callable[[fx.Node], bool] = lambda _: False, *, wide: bool = False
    ) -> Subgraph:
        """A node of that graph from the float network's values, by their names there, and from what else is given."""
        quantized = self._quantized(wide)
        piece = subgraph(quantized.graph, [node], lambda each: each.name in quantized.values or is_given(each))
        return replace(piece, inputs=tuple(quantized.values.get(name, name) for name in piece.inputs))

    @cache  # noqa: B019, as long as its owner
    def substitute(self, name: str, wide: bool) -> Subgraph:
        """The layer from float values and, if it has one, a float weight that stands for its codes."""
        layer = self.quantized_node(name, wide=wide)
        weight = weight_of(layer)
        return self.quantized_subgraph(result_of(layer), lambda node: node is weight, wide=wide)

    def replaced(self, name: str, values: Mapping[fx.Node, Any], weight: Callable[[], Tensor], *, wide: bool) -> Tensor:
        """What the layer's substitute makes of the float network's values.

        Args:
            weight: gives the float weight that stands for its codes, where it has one.
        """
        substitute = self.substitute(name, wide)
        # What the float graph does not know is the weight.
        given = [values[self._by_name[each]] if each in self._by_name else weight() for each in substitute.inputs]
        found: Tensor = substitute.module(*given)[0]
        return found

    @cache  # noqa: B019
    def scales(self, name: str, bits: int) -> Tensor:
        """Scales of a layer's weight at so many bits."""
        method = self.config.weight_range
        return weight_scales(self.weight(name), bits, axis=self._axis(name), method=method)

    def quantized_weight(self, name: str, bits: int) -> Tensor:
        """The layer's weight rounded to so many bits, float32."""
        low, high = weight_range(bits)
        return fake_quantize(self.weight(name), self.scales(name, bits), 0, low, high, axis=self._axis(name))

    def weight(self, name: str) -> Tensor:
        """The layer's weight, float32."""
        return get_attr_tensor(self.float_graph, operand(self._by_name[name], 1)).detach().float()

    @cache  # noqa: B019
    def affected(self, layers: tuple[str, ...]) -> frozenset[fx.Node]:
        """These nodes of the float graph and all that depends on them."""
        found = {self._by_name[name] for name in layers}
        for node in self.float_graph.graph.nodes:
            if any(each in found for each in node.all_input_nodes):
                found.add(node)
        return frozenset(found)

    @cache  # noqa: B019
    def _quantized(self, wide: bool) -> _Quantized:
        # Every weight is given to what replaces its layer: its scales need no search here.
        config = replace(self.config, weight_range="max")
        if wide:
            widening = (
                Rule(unit.path, act_bits=SIXTEEN_BITS) for unit in units_of(self._prepared.graph_module) if unit.widens
            )
            config = replace(config, rules=(*config.rules, *widening))
        graph = convert_as(self._prepared, config)
        layers = paired_layers(self._prepared.graph_module, graph)
        return _Quantized(graph, layers, self._values_of(graph, layers))

    def _values_of(self, qdq: fx.GraphModule, layers: dict[str, fx.Node]) -> dict[str, str]:
        computed = {node.name for node in self.float_graph.graph.nodes if node.op != "get_attr"}
        names = {node.name: node.name for node in qdq.graph.nodes if node.name in computed}
        for name, layer in layers.items():
            # Of a layer with a 16-bit input that is the sum over both codes, and nothing before it.
            names.pop(layer.name, None)
            names[result_of(layer).name] = name
        return names

    def _axis(self, name: str) -> int:
        info = layer_info(self.quantized_node(name))
        return 1 if info.kind == "conv_transpose" else 0


@dataclass(frozen=True)
class _Quantized:
    """A q/dq graph of all layers.

    Attributes:
        layers: name of each quantized layer in the float graph → its node here.
        values: name of each node that stands for a value of the float network → its name there.
    """

    graph: fx.GraphModule
    layers: dict[str, fx.Node]
    values: dict[str, str]


class Run:
    """One batch: the float network's values, and its prediction with some layers quantized."""

    def __init__(self, substitution: LayerSubstitution, tensors: list[Tensor]):
        self.substitution = substitution
        self.values = all_values(substitution.float_graph, tensors)
        self.prediction: Tensor = self.values[self.substitution.float_graph.graph.output_node()][0]

    def with_quantized(self, unit: Unit, choice: Choice) -> Tensor:
        """The prediction when `unit` alone is quantized. Only what comes after it is computed again."""
        affected = self.substitution.affected(unit.layers)
        untouched = {node: value for node, value in self.values.items() if node not in affected}
        swapped = _Swapped(self.substitution, unit, choice)
        with torch.no_grad():
            prediction: Tensor = swapped.run(initial_env=untouched)[0]
        return prediction


class _Swapped(fx.Interpreter):
    """Computes the layers of a unit by what replaces them."""

    def __init__(self, substitution: LayerSubstitution, unit: Unit, choice: Choice):
        super().__init__(substitution.float_graph, garbage_collect_values=False)
        self.substitution, self.unit, self.choice = substitution, unit, choice

    def run_node(self, n: fx.Node) -> Any:
        if n.name not in self.unit.layers:
            return super().run_node(n)
        bits = self.choice.weight_bits
        weight = partial(self.substitution.quantized_weight, n.name, bits)
        return self.substitution.replaced(n.name, self.env, weight, wide=self.choice.wide)


def paired_layers(prepared: fx.GraphModule, qdq: fx.GraphModule) -> dict[str, fx.Node]:
    """Name of each quantized layer in the float graph → its node in the q/dq graph."""
    names = [node.name for node in planned_layers(prepared)]
    quantized = [node for node in quantized_layers(qdq) if _reads_first_code(node)]
    return dict(zip(names, quantized, strict=True))


def result_of(layer: fx.Node) -> fx.Node:
    """The layer, or the sum of both where its input has 16 bits."""
    for reader in layer.users:
        if any(_reads_residual(each) for each in reader.all_input_nodes):
            return reader
    return layer


def _reads_first_code(layer: fx.Node) -> bool:
    """Whether the layer is on integers and, where its input has two codes, reads the first."""
    return layer_info(layer).quantized and not _reads_residual(layer)


def _reads_residual(node: fx.Node) -> bool:
    known = fact(node, QuantizedLayer)
    return known is not None and known.reads_residual
