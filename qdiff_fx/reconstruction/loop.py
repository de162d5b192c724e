"""Reconstruct a prepared network unit by unit, each on what the already quantized units before it give."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from qdiff_fx.calibration.data import Batch
from qdiff_fx.checkpoint import Checkpoint
from qdiff_fx.networks import PreparedUNet
from qdiff_fx.progress import Phase, Progress, phase
from qdiff_fx.quant.parameters import ParameterStore
from qdiff_fx.reconstruction.cache import ActivationCache
from qdiff_fx.reconstruction.config import ReconstructionConfig
from qdiff_fx.reconstruction.data import Samples, gather
from qdiff_fx.reconstruction.fingerprint import fingerprint
from qdiff_fx.reconstruction.footprint import fitting
from qdiff_fx.reconstruction.report import Reconstruction, UnitReport
from qdiff_fx.reconstruction.sensitivity import output_sensitivity
from qdiff_fx.reconstruction.simulation import Simulation, simulate
from qdiff_fx.reconstruction.stage import FLOAT, QUANTIZED, Stage, build_stages
from qdiff_fx.reconstruction.unit import CHUNK, Lesson, reconstruct_unit
from qdiff_fx.reconstruction.units import find_units

SENSED = 64
"""Samples that sensitivities are averaged over."""


@torch.inference_mode(False)
@torch.enable_grad()  # learning needs gradients, wherever it is called
def reconstruct(
    prepared: PreparedUNet,
    data: Iterable[Batch],
    config: ReconstructionConfig | None = None,
    *,
    resume_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool | Progress = True,
) -> Reconstruction:
    """Learn how to round weights and how wide to make quantization steps, block by block (Q-Diffusion, section 4.3).

    Between `calibrate` and `convert_qdiff`: what is decided is kept in `prepared.decided`, and conversion takes it.
    A second call starts from what the first decided.

    Args:
        prepared: a calibrated network.
        data: the batches it was calibrated on, or more of the same trajectory.
        config: how long and how; `ReconstructionConfig.fast()` by default.
        resume_dir: keep every finished unit there; a run that was killed goes on from it, to the same result.
        cache_dir: where cached activations go while this runs, up to `config.cache_bytes`.
        progress: show a bar or report to this, and say which units kept their rounded weights.
    Raises:
        CalibrationError: `prepared` saw no data; too few samples, or none of a part of the schedule; the disk is full.
        InputError: data of another network.
        ArtifactError: `resume_dir` belongs to a run with another network, data or configuration, or cannot be written.
    """
    config = config or ReconstructionConfig.fast()
    samples = gather(prepared, data, config.batch_size)
    simulation = simulate(prepared.graph_module, prepared.qconfig, prepared.decided)
    stages = build_stages(simulation, find_units(simulation.graph_module))
    samples = fitting(simulation, stages, samples, config)
    checkpoint = Checkpoint(resume_dir, fingerprint(simulation, prepared.qconfig, config, samples))
    reports: list[UnitReport] = []
    with phase(progress, "reconstructing", len(stages) * len(_passes(config)), "unit") as bar:
        for name, weights, activations in _passes(config):
            simulation.switch.set(weights=True, activations=activations)
            with ActivationCache(len(samples), cache_dir) as cache:
                for node, tensor in samples.inputs.items():
                    cache.put(node, tensor)
                sensitivity = _sensitivity(simulation, stages, samples, config)
                lesson = Lesson(config, samples, cache, sensitivity, weights, activations)
                for report in _run(name, simulation, stages, lesson, checkpoint, bar):
                    reports.append(report)
                    if report.fell_back:
                        bar.note(f"{report.path}: {report.fell_back}; it keeps what it had")
    prepared.decided |= _decided(simulation)
    return Reconstruction(tuple(reports), len(samples))


def _passes(config: ReconstructionConfig) -> tuple[tuple[str, bool, bool], ...]:
    """Name, whether weights are learned, whether activations are quantized, and learned."""
    if config.joint:
        return (("unit", True, True),)
    return ("weights", True, False), ("activations", False, True)


def _sensitivity(
    simulation: Simulation, stages: list[Stage], samples: Samples, config: ReconstructionConfig
) -> dict[str, Tensor]:
    if config.objective == "plain":
        return {}
    outputs = {stage.unit.output for stage in stages}
    with simulation.switch.off():
        return output_sensitivity(
            simulation.graph_module, outputs, samples.inputs, samples.evenly(SENSED), chunk=CHUNK, seed=config.seed
        )


def _run(
    name: str, simulation: Simulation, stages: list[Stage], lesson: Lesson, checkpoint: Checkpoint, bar: Phase
) -> Iterator[UnitReport]:
    """One pass over all units. Units a checkpoint holds are set, and computed for those that come after."""
    finished = [checkpoint.load(f"{name}-{index:04d}") for index in range(len(stages))]
    ahead = any(each is None for each in finished)
    for index, (stage, found) in enumerate(zip(stages, finished, strict=True)):
        if ahead:
            with simulation.switch.off():
                stage.propagate(lesson.cache, FLOAT, CHUNK)
        if found is not None:
            stage.restore(found[0])
            report = UnitReport(**{**found[1], "resumed": True})
        else:
            report = reconstruct_unit(stage, lesson, seed=lesson.config.seed * 1_000_003 + index)
            checkpoint.save(f"{name}-{index:04d}", stage.state(), report.to_json())
        if ahead:
            stage.propagate(lesson.cache, QUANTIZED, CHUNK)
        for node in stage.finished if ahead else ():
            lesson.cache.drop(f"{FLOAT}.{node}")
            lesson.cache.drop(f"{QUANTIZED}.{node}")
        (bar.advance if found is None else bar.skip)()
        yield report


def _decided(simulation: Simulation) -> ParameterStore:
    """What was learned, for conversion."""
    start, weights, activations = simulation.start, {}, {}
    for node, layer in simulation.weights.items():
        name, bias = simulation.ids[node], simulation.biases.get(node)
        learned = None if bias is None else bias.decided.detach().clone()
        weights[name] = replace(
            start.weights[name],
            codes=layer.rounding.codes,
            scales=layer.rounding.scales.detach().flatten(),
            bias=learned,
        )
    for node, quantizer in simulation.activations.items():
        name = simulation.ids[node]
        activations[name] = replace(start.activations[name], params=quantizer.decided())
    reads = {
        layer: {index: name for index, name in inputs.items() if name in activations}
        for layer, inputs in start.inputs.items()
    }
    return ParameterStore(weights, activations, reads)
