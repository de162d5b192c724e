"""How much noise each layer would add to the prediction at any bits, from one pass forwards and one backwards.

`sensitivity.py` measures it, by running all that follows a layer once for each of its choices: as many passes as there
are layers and choices. Here each layer is run by itself, twice, and what becomes of its error is known from how
sensitive the network's output is to the channels of the layer's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qdiff_fx.ir.arguments import operand
from qdiff_fx.ir.facts import layer_info
from qdiff_fx.quant.qparams import SIXTEEN_BITS
from qdiff_fx.reconstruction.sensitivity import expected_error, output_sensitivity
from qdiff_fx.tuning.choice import Choice
from qdiff_fx.tuning.layer_substitution import LayerSubstitution, Run
from qdiff_fx.tuning.units import Unit

SECOND_CODE = 256
"""Multiplications of 8 bits that take as long as the second code of an element that is read in two."""


@dataclass(frozen=True)
class Predicted:
    """A unit on one batch.

    Attributes:
        inputs, weights: relative noise power ``Σ (ε̂ - ε)² / Σ ε²`` of the prediction that comes of what the unit reads,
            and of its weights, at the bits that are configured.
        bits: of its weights, as configured.
        work: multiplications of its layers, of one sample, at inputs of 8 bits.
        elements: that they read.
        wide: its inputs have 16 bits as configured.
    """

    inputs: float
    weights: float
    bits: int
    work: int
    elements: int
    wide: bool

    def noise(self, choice: Choice) -> float:
        """At other bits: each of a weight quarters the power of its error, and what 16 bits leave of inputs is none."""
        weights = self.weights / 4.0 ** (choice.weight_bits - self.bits)
        return weights + (0.0 if choice.wide else self.inputs)

    def cost(self, choice: Choice) -> int:
        """Multiplications: with inputs of 16 bits, which are two codes, twice as many, and those codes are made."""
        return 2 * self.work + SECOND_CODE * self.elements if choice.wide or self.wide else self.work


def predicted(substitution: LayerSubstitution, units: Sequence[Unit], tensors: list[Tensor]) -> dict[str, Predicted]:
    """Every unit that has weights and depends on the network's inputs, by its path.

    With an error e_j at position j of the layer's output, and the sensitivity G of `output_sensitivity`, the noise is
    ``mean_j e_jᵀ G e_j``. Weights are rounded to nearest: that ranks the layers much alike.

    Args:
        tensors: the network's inputs, each with a row for every sample.
    """
    graph = substitution.float_graph
    inputs = dict(zip((node.name for node in graph.graph.find_nodes(op="placeholder")), tensors, strict=True))
    weighted = [unit for unit in units if unit.counts]
    names = [name for unit in weighted for name in unit.layers]
    sensitivity = output_sensitivity(graph, names, inputs, torch.arange(len(tensors[0])), chunk=1, seed=0)
    run = substitution.on(tensors)
    reached = [unit for unit in weighted if all(name in sensitivity for name in unit.layers)]
    with torch.no_grad():
        return {unit.path: _of_unit(run, unit, sensitivity) for unit in reached}


def _of_unit(run: Run, unit: Unit, sensitivity: dict[str, Tensor]) -> Predicted:
    bits, inputs, both, work, elements, wide = unit.configured.weight_bits, 0.0, 0.0, 0, 0, False
    for name in unit.layers:
        inputs += _noise(run, name, sensitivity[name], None)
        both += _noise(run, name, sensitivity[name], bits)
        work += _multiplications(run, name)
        elements += _read(run, name).numel() // len(_read(run, name))
        wide |= layer_info(run.substitution.quantized_node(name)).act_bits == SIXTEEN_BITS
    return Predicted(inputs, max(both - inputs, 0.0), bits, work, elements, wide)


def _noise(run: Run, name: str, sensitivity: Tensor, bits: int | None) -> float:
    """Of a layer whose inputs are quantized, with its weight at so many bits, or in float."""
    substitution = run.substitution

    def weight() -> Tensor:
        return substitution.weight(name) if bits is None else substitution.quantized_weight(name, bits)

    found = substitution.replaced(name, run.values, weight, wide=False)
    return float(expected_error((found - run.values[substitution.float_node(name)]).float(), sensitivity))


def _multiplications(run: Run, name: str) -> int:
    """Of one sample: as many of each weight as there are positions."""
    substitution = run.substitution
    node = substitution.float_node(name)
    info = layer_info(substitution.quantized_node(name))
    value: Tensor = _read(run, name) if info.kind == "conv_transpose" else run.values[node]
    channels = value.shape[-1] if info.kind == "linear" else value.shape[1]
    return substitution.weight(name).numel() * (value.numel() // (channels * len(value)))


def _read(run: Run, name: str) -> Tensor:
    value: Tensor = run.values[operand(run.substitution.float_node(name))]
    return value
