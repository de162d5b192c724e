"""How much room the cached activations take, and how many samples fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from qdiff_fx.errors import CalibrationError
from qdiff_fx.reconstruction.cache import STORED
from qdiff_fx.reconstruction.config import ReconstructionConfig
from qdiff_fx.reconstruction.data import Samples
from qdiff_fx.reconstruction.simulation import Simulation
from qdiff_fx.reconstruction.stage import Stage


def fitting(simulation: Simulation, stages: Sequence[Stage], samples: Samples, config: ReconstructionConfig) -> Samples:
    """As many samples as were asked for and fit, evenly over the timesteps.

    Raises:
        CalibrationError: not even one batch fits.
    """
    room = config.cache_bytes // max(1, bytes_per_sample(simulation, stages, samples))
    if room < config.batch_size:
        raise CalibrationError(
            f"its {config.cache_bytes:,} bytes hold the activations of {room} samples, less than one batch of "
            f"{config.batch_size}",
            where="cache_bytes",
            fix="Raise cache_bytes, or lower batch_size",
        )
    count = min(room, config.samples or len(samples), len(samples))
    count = max(count, config.batch_size)
    return samples if count == len(samples) else samples.only(samples.evenly(count))


def bytes_per_sample(simulation: Simulation, stages: Sequence[Stage], samples: Samples) -> int:
    """The most that is cached at a time: float and quantized outputs that a later unit still reads."""
    sizes = _elements(simulation, stages, samples)
    live = most = 0
    for stage in stages:
        live += sizes[stage.unit.output]
        most = max(most, live)
        live -= sum(sizes[name] for name in stage.finished)
    return most * 2 * STORED.itemsize


@torch.no_grad()
def _elements(simulation: Simulation, stages: Sequence[Stage], samples: Samples) -> dict[str, int]:
    """Elements of each unit's output for one sample."""
    outputs = {stage.unit.output for stage in stages}
    sizes: dict[str, int] = {}

    class Sizes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if n.name in outputs and isinstance(result, Tensor):
                sizes[n.name] = result.numel()
            return result

    with simulation.switch.off():
        Sizes(simulation.graph_module).run(*(tensor[:1] for tensor in samples.inputs.values()))
    return sizes
