"""A unit with the data it is trained on: its graph, its quantizers, its cached inputs and targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qdiff_fx.ir.subgraph import Subgraph, subgraph
from qdiff_fx.reconstruction.adaround import AdaRound
from qdiff_fx.reconstruction.cache import ActivationCache
from qdiff_fx.reconstruction.quantizers import ActivationQuantizer, LayerBias
from qdiff_fx.reconstruction.simulation import Simulation
from qdiff_fx.reconstruction.units import Unit

FLOAT, QUANTIZED = "float", "quantized"
FIXED = "fixed"  # computed once while a unit learns


@dataclass(frozen=True)
class Stage:
    """One unit ready to be reconstructed.

    Attributes:
        part: the unit's graph.
        finished: those of its inputs that no later unit reads.
        activations: quantizers whose step sizes this unit decides: no earlier unit reads them.
    """

    unit: Unit
    part: Subgraph
    finished: tuple[str, ...]
    roundings: dict[str, AdaRound]
    biases: dict[str, LayerBias]
    activations: dict[str, ActivationQuantizer]

    def state(self) -> dict[str, Tensor]:
        """Everything the unit decides: int8 codes, biases, logarithms of the factors of scales and step sizes."""
        tensors = {f"codes.{name}": each.codes for name, each in self.roundings.items()}
        tensors |= {f"scale.{name}": each.log_factor.detach().clone() for name, each in self.roundings.items()}
        tensors |= {f"bias.{name}": each.decided.detach().clone() for name, each in self.biases.items()}
        return tensors | {f"factor.{name}": each.log_factor.detach().clone() for name, each in self.activations.items()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to what `state` returned."""
        for name, rounding in self.roundings.items():
            rounding.codes = state[f"codes.{name}"]
            rounding.log_factor.copy_(state[f"scale.{name}"])
        for name, bias in self.biases.items():
            bias.decided.copy_(state[f"bias.{name}"])
        for name, activation in self.activations.items():
            activation.log_factor.copy_(state[f"factor.{name}"])

    def run(self, cache: ActivationCache, rows: slice | Tensor, source: str = QUANTIZED) -> Tensor:
        """The unit's output on some samples, from the float or the quantized prefix."""
        inputs = (read(cache, name, rows, source) for name in self.part.inputs)
        output: Tensor = self.part.module(*inputs)[0]
        return output

    def error(self, cache: ActivationCache, rows: Tensor) -> Tensor:
        """What the unit's output differs by from the float network's."""
        return self.run(cache, rows) - read(cache, self.unit.output, rows, FLOAT)

    @torch.no_grad()
    def propagate(self, cache: ActivationCache, source: str, chunk: int) -> None:
        """Cache the unit's output for every sample."""
        for start in range(0, cache.samples, chunk):
            rows = slice(start, min(start + chunk, cache.samples))
            cache.write(f"{source}.{self.unit.output}", rows, self.run(cache, rows, source))


def build_stages(simulation: Simulation, units: tuple[Unit, ...]) -> list[Stage]:
    """A stage for each unit, in order."""
    gm = simulation.graph_module
    nodes = {node.name: node for node in gm.graph.nodes}
    outputs = {unit.output for unit in units}
    parts = [subgraph(gm, [nodes[unit.output]], lambda node: node.name in outputs) for unit in units]
    last_use = {name: index for index, part in enumerate(parts) for name in part.inputs}
    decided: set[str] = set()
    stages = []
    for index, (unit, part) in enumerate(zip(units, parts, strict=True)):
        called = {node.name for node in part.module.graph.nodes if node.op == "call_module"} - decided
        decided |= called
        stages.append(
            Stage(
                unit,
                part,
                tuple(name for name in part.inputs if name in outputs and last_use[name] == index),
                {name: simulation.weights[name].rounding for name in unit.layers if name in simulation.weights},
                {name: simulation.biases[name] for name in unit.layers if name in simulation.biases},
                {name: each for name, each in simulation.activations.items() if name in called},
            )
        )
    return stages


def read(cache: ActivationCache, name: str, rows: slice | Tensor, source: str) -> Tensor:
    """What is cached of a node, images channels last."""
    for key in (f"{FIXED}.{name}", f"{source}.{name}"):
        if key in cache:
            return cache.read(key, rows)
    tensor = cache.read(name, rows)  # a network input: float and quantized are the same
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
