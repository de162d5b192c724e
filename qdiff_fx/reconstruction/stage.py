"""A unit with the data it is trained on: its graph, its quantizers, its cached inputs and targets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from qdiff_fx.reconstruction.adaround import AdaRound
from qdiff_fx.reconstruction.cache import ActivationCache
from qdiff_fx.reconstruction.quantizers import ActivationQuantizer, LayerBias, Switch
from qdiff_fx.reconstruction.units import Unit

FLOAT, QUANTIZED = "float", "quantized"


@dataclass(frozen=True)
class Stage:
    """One unit ready to be reconstructed.

    Attributes:
        module: the unit's graph; called with its inputs in order, returns its output.
        inputs: their names in the cache, without the prefix that tells float from quantized.
        samples: N, rows of everything cached.
        activations: quantizers whose step sizes this unit decides: no earlier unit reads them.
    """

    unit: Unit
    module: fx.GraphModule
    inputs: tuple[str, ...]
    cache: ActivationCache
    samples: int
    switch: Switch
    roundings: dict[str, AdaRound]
    biases: dict[str, LayerBias]
    activations: dict[str, ActivationQuantizer]

    def run(self, rows: slice | Tensor, source: str = QUANTIZED) -> Tensor:
        """The unit's output on some samples, from the float or the quantized prefix."""
        return self.module(*(self._input(name, rows, source) for name in self.inputs))

    def target(self, rows: slice | Tensor) -> Tensor:
        """The float network's output on some samples."""
        return _image_layout(self.cache.read(f"{FLOAT}.{self.unit.output}", rows))

    def chunks(self, size: int) -> Iterator[slice]:
        for start in range(0, self.samples, size):
            yield slice(start, min(start + size, self.samples))

    @torch.no_grad()
    def propagate(self, source: str, chunk: int) -> None:
        """Cache the unit's output for every sample."""
        name = f"{source}.{self.unit.output}"
        for rows in self.chunks(chunk):
            output = self.run(rows, source)
            if name not in self.cache:
                self.cache.allocate(name, (self.samples, *output.shape[1:]))
            self.cache.write(name, rows, output)

    def _input(self, name: str, rows: slice | Tensor, source: str) -> Tensor:
        stored = name if name in self.cache else f"{source}.{name}"
        return _image_layout(self.cache.read(stored, rows))


def _image_layout(tensor: Tensor) -> Tensor:
    """Channels last for images, which is the layout convolutions are fastest in."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
