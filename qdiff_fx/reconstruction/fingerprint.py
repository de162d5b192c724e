"""Digests of everything the result of a reconstruction depends on."""

from __future__ import annotations

import json

from qdiff_fx.config import QDiffConfig
from qdiff_fx.quant.digest import digest
from qdiff_fx.reconstruction.config import ReconstructionConfig
from qdiff_fx.reconstruction.data import Samples
from qdiff_fx.reconstruction.simulation import Simulation


def fingerprint(
    simulation: Simulation, qconfig: QDiffConfig, config: ReconstructionConfig, samples: Samples
) -> dict[str, str]:
    """A digest by what it is of; a checkpoint names those that differ."""
    weights = [each.rounding.weight for each in simulation.weights.values()]
    starts = [part for each in simulation.weights.values() for part in (each.rounding.codes, each.rounding.scales)]
    biases = [part for each in simulation.biases.values() for part in (each.bias, each.decided)]
    steps = [part for each in simulation.activations.values() for part in (each.scales().detach(), each.zero_point)]
    return {
        "network": digest([str(simulation.graph_module.graph), *weights]),
        "quantization": digest([json.dumps(qconfig.to_json(), sort_keys=True)]),
        "schedule of reconstruction": digest([json.dumps(config.to_json(), sort_keys=True)]),
        "calibration": digest([*starts, *biases, *steps]),
        "set of samples": digest([*samples.inputs, *samples.inputs.values()]),
    }
