"""Reconstruct a prepared network unit by unit, each on what the already quantized units before it give."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from qdiff_fx.calibration.data import Batch
from qdiff_fx.decisions import DECIDED, DecidedLayer
from qdiff_fx.networks import PreparedUNet
from qdiff_fx.reconstruction.cache import ActivationCache
from qdiff_fx.reconstruction.config import ReconstructionConfig
from qdiff_fx.reconstruction.learning import Batches, evaluation_rows, learn_activations, learn_weights, unit_loss
from qdiff_fx.reconstruction.simulation import Simulation, simulate
from qdiff_fx.reconstruction.stage import FLOAT, QUANTIZED, Stage
from qdiff_fx.reconstruction.subgraph import extract
from qdiff_fx.reconstruction.units import Unit, find_units

CHUNK = 16


@dataclass(frozen=True)
class UnitReport:
    path: str
    before: float
    after: float
    seconds: float


def reconstruct(
    prepared: PreparedUNet,
    data: Iterable[Batch],
    config: ReconstructionConfig | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> list[UnitReport]:
    config = config or ReconstructionConfig.fast()
    simulation = simulate(prepared.graph_module, prepared.qconfig)
    units = find_units(simulation.graph_module)
    inputs, by_timestep = _flat_inputs(prepared, data)
    reports = []
    with ActivationCache(cache_dir) as cache:
        for name, tensor in inputs.items():
            cache.put(name, tensor)
        bar = tqdm(list(stages(simulation, units, cache, len(by_timestep))), disable=not progress, unit="unit")
        for index, (stage, dead) in enumerate(bar):
            began = time.time()
            bar.set_description(stage.unit.path)
            simulation.switch.set(weights=False, activations=False)
            stage.propagate(FLOAT, CHUNK)
            simulation.switch.set(weights=True, activations=True)
            rows = evaluation_rows(by_timestep)
            before = unit_loss(stage, rows, CHUNK)
            batches = Batches(by_timestep, config.batch_size, config.seed * 1_000_003 + index)
            learn_weights(stage, config, batches)
            middle = unit_loss(stage, rows, CHUNK)
            learn_activations(stage, config, batches)
            after = unit_loss(stage, rows, CHUNK)
            stage.propagate(QUANTIZED, CHUNK)
            reports.append(UnitReport(stage.unit.path, before, after, time.time() - began))
            tqdm.write(f"{stage.unit.path:40s} {before:.3g} {middle:.3g} {after:.3g} {time.time() - began:.1f}s")
            for name in dead:
                cache.drop(f"{FLOAT}.{name}")
                cache.drop(f"{QUANTIZED}.{name}")
    _decide(prepared, simulation)
    return reports


def stages(simulation: Simulation, units: tuple[Unit, ...], cache: ActivationCache, samples: int):
    gm = simulation.graph_module
    boundary = {unit.output for unit in units}
    parts = [extract(gm, unit.output, boundary) for unit in units]
    last = {name: index for index, (_, names) in enumerate(parts) for name in names}
    owned: set[str] = set()
    for index, (unit, (module, names)) in enumerate(zip(units, parts)):
        called = {node.name for node in module.graph.nodes if node.op == "call_module"}
        activations = {name: each for name, each in simulation.activations.items() if name in called - owned}
        owned |= set(activations)
        yield (
            Stage(
                unit,
                module,
                names,
                cache,
                samples,
                simulation.switch,
                {name: simulation.weights[name].rounding for name in unit.layers if name in simulation.weights},
                {name: simulation.biases[name] for name in unit.layers if name in simulation.biases},
                activations,
            ),
            [name for name in names if last[name] == index and name in boundary],
        )


def _flat_inputs(prepared: PreparedUNet, data: Iterable[Batch]) -> tuple[dict[str, Tensor], Tensor]:
    names = [node.name for node in prepared.graph_module.graph.nodes if node.op == "placeholder"]
    timestep = next(
        (n.name for n in prepared.graph_module.graph.nodes if n.op == "placeholder" and n.meta.get("timestep")), None
    )
    rows = [prepared.flatten_inputs((), batch) for batch in data]
    tensors = {name: torch.cat(column) for name, column in zip(names, zip(*rows))}
    count = len(next(iter(tensors.values())))
    order = torch.arange(count) if timestep is None else tensors[timestep].argsort(stable=True)
    return tensors, order


def _decide(prepared: PreparedUNet, simulation: Simulation) -> None:
    for node in prepared.graph_module.graph.nodes:
        if node.name in simulation.weights:
            rounding = simulation.weights[node.name].rounding
            bias = simulation.biases[node.name].decided.detach() if node.name in simulation.biases else None
            node.meta[DECIDED] = DecidedLayer(rounding.hard_codes(), rounding.start.scales, bias)
        elif node.name in simulation.activations:
            node.meta[DECIDED] = simulation.activations[node.name].decided()
