"""A block of the observed network on integer kernels, under weights that are still being chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from qdiff_fx.backends import get_backend
from qdiff_fx.backends.common.base import activation_of
from qdiff_fx.backends.common.options import choose_options
from qdiff_fx.calibration.stream import Run
from qdiff_fx.config import QDiffConfig
from qdiff_fx.ir.annotations import nodes_with, require
from qdiff_fx.ir.arguments import operand
from qdiff_fx.ir.blocks import Block, part_of
from qdiff_fx.ir.edit import clean
from qdiff_fx.ir.facts import LayerPlan, layer_id, layer_info, quantized_layers
from qdiff_fx.passes.quantize.check_scales import weight_and_bias
from qdiff_fx.passes.quantize.convert import convert_part
from qdiff_fx.passes.quantize.nearest import nearest
from qdiff_fx.quant.parameters import ParameterStore, WeightParameters

STAND_IN_BITS = 8
"""Of weights that no codes have been chosen for: hardly different from float ones, and found in no time."""


@dataclass(frozen=True)
class Part:
    """What of a block is run.

    Attributes:
        run: takes the values of `inputs`.
        inputs: names of values.
    """

    run: Run
    inputs: tuple[str, ...]


class BlockOnIntegers:
    """One block of an observed graph, to be run on the native kernels.

    Args:
        graph: the whole observed graph.
        config: the configuration it was annotated with.
        block: one of its blocks.
        parameters: of the whole graph's activations; and weights, where they have been chosen.
        compute_dtype: in which kernels hand activations to each other; None: as the native backend does it.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        config: QDiffConfig,
        block: Block,
        parameters: ParameterStore,
        compute_dtype: torch.dtype | None = None,
    ):
        self.graph, self.config, self.block, self.parameters = graph, config, block, parameters
        self._options = choose_options(get_backend("native"), {"compute_dtype": compute_dtype, "reuse": False})
        self.layers = {layer_id(node): node for node in block.layers}

    def forward(self, weights: Mapping[str, WeightParameters]) -> Part:
        """The block's outputs."""
        part, inputs = self._converted(weights)
        return Part(self._lowered(part), inputs)

    def codes(self, layers: Sequence[str], weights: Mapping[str, WeightParameters]) -> tuple[Part, dict[str, int]]:
        """The codes that some of the layers read, and which of the outputs is whose: those who read alike share one."""
        part, inputs = self._converted(weights)
        sources = {layer_info(node).path: _codes(node) for node in quantized_layers(part)}
        read = list(dict.fromkeys(sources[layer] for layer in layers))
        (output,) = part.graph.find_nodes(op="output")
        output.args = (tuple(read),)
        clean(part)
        placeholders = part.graph.find_nodes(op="placeholder")
        kept = tuple(name for name, node in zip(inputs, placeholders, strict=True) if node.users)
        for node in placeholders:
            if not node.users:
                part.graph.erase_node(node)
        part.recompile()
        return Part(self._lowered(part), kept), {layer: read.index(sources[layer]) for layer in layers}

    def _converted(self, weights: Mapping[str, WeightParameters]) -> tuple[fx.GraphModule, tuple[str, ...]]:
        piece = part_of(self.graph, self.block)
        chosen = {name: self._weight(piece.module, node, weights) for name, node in _weight_layers(piece.module)}
        convert_part(piece.module, self.config, replace(self.parameters, weights=chosen))
        return piece.module, piece.inputs

    def _lowered(self, part: fx.GraphModule) -> Run:
        with torch.no_grad():
            run: Run = get_backend("native").lower(part, self._options).module.forward
        return run

    def _weight(self, part: fx.GraphModule, node: fx.Node, weights: Mapping[str, WeightParameters]) -> WeightParameters:
        info = require(node, LayerPlan).info
        axis = 1 if info.kind == "conv_transpose" else 0
        found = weights.get(info.path)
        if found is not None:
            return found
        return nearest(weight_and_bias(part, node)[0].float(), STAND_IN_BITS, axis, "max")


def _weight_layers(part: fx.GraphModule) -> list[tuple[str, fx.Node]]:
    plans = [(require(node, LayerPlan).info, node) for node in nodes_with(part, LayerPlan)]
    return [(info.path, node) for info, node in plans if info.quantized and info.kind != "attention"]


def _codes(layer: fx.Node) -> fx.Node:
    """What quantizes the input of a layer with a weight, or of one that has none."""
    dequantize = activation_of(layer)
    return layer if dequantize is None else operand(dequantize)
