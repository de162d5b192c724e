"""The loop over a network's blocks: see what codes its layers read, choose theirs, go on behind them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx

from qdiff_fx.calibration.chunks import chunks_of
from qdiff_fx.calibration.data import Batch
from qdiff_fx.calibration.stream import Stream
from qdiff_fx.checkpoint import Checkpoint
from qdiff_fx.distributed import ALONE, Workers
from qdiff_fx.errors import CalibrationError, ConfigError
from qdiff_fx.ir.annotations import nodes_with, require
from qdiff_fx.ir.blocks import Block, cut_into_blocks
from qdiff_fx.ir.facts import LayerPlan, layer_id, planned_info
from qdiff_fx.networks import PreparedUNet
from qdiff_fx.passes.quantize.check_scales import weight_and_bias
from qdiff_fx.passes.quantize.measure import measure_activations
from qdiff_fx.passes.quantize.nearest import nearest
from qdiff_fx.progress import Phase, Progress, phase
from qdiff_fx.quant.digest import digest
from qdiff_fx.quant.parameters import WeightParameters
from qdiff_fx.weight_rounding.jobs import Gathering, Job, jobs_of
from qdiff_fx.weight_rounding.nearest_plane import factorise
from qdiff_fx.weight_rounding.parts import BlockOnIntegers
from qdiff_fx.weight_rounding.second_moment import SecondMoment
from qdiff_fx.weight_rounding.second_order import InParts

MEMORY_CAP = 1 << 29
"""Of a Hessian, two of which are there at a time; those of parts (`most_columns`) are smaller than that."""


@dataclass(frozen=True)
class RoundingReport:
    """What became of the layers, by module path.

    Attributes:
        rounded: to second order, in execution order.
        refused: to nearest, and why.
        short: those of the rounded ones whose inputs were seen at fewer positions than they have columns, and at how
            many: their second moment says nothing in some directions, where it is damped.
    """

    rounded: tuple[str, ...]
    refused: dict[str, str]
    short: dict[str, int]


def round_weights(
    prepared: PreparedUNet,
    batches: Iterable[Batch],
    *,
    memory_cap_bytes: int = MEMORY_CAP,
    cache_dir: str | os.PathLike[str] | None = None,
    cache_bytes: int | None = None,
    resume_dir: str | os.PathLike[str] | None = None,
    progress: bool | Progress = True,
    workers: Workers = ALONE,
) -> RoundingReport:
    """Choose every weight code by what it does to its layer's output, given the inputs the layer really gets.

    The rows stream through the network block by block, once: each layer reads what integer kernels make of the layers
    before it, which are already rounded; those of its own block still have weights of 8 bits. `convert_qdiff` then uses
    the codes found here. A layer that already has codes keeps them.

    Args:
        prepared: a calibrated network; the codes are kept in its `decided`.
        batches: mappings of its forward arguments.
        memory_cap_bytes: of a Hessian; a layer with a larger one is rounded in parts of its input channels.
        cache_dir: where activations go while this runs; the system's folder for temporary files by default.
        cache_bytes: what they may take; None: what the disk has.
        resume_dir: keep every finished block there; a run that was killed goes on from it, to the same codes.
        progress: show a bar, or report to whoever shows one.
        workers: processes that share the rows and the layers; all are given the same network and batches, and all get
            the same codes. The first of them keeps `resume_dir`.
    Raises:
        CalibrationError: there are no batches, or the network was not calibrated; an activation is not a number; the
            disk is full, or the cap is reached.
        ConfigError: the network was prepared for another rounding.
        ConversionError: the Hessian is not finite.
        ArtifactError: `resume_dir` belongs to a run with another network, data or configuration, or cannot be written.
    """
    if prepared.qconfig.weight_rounding == "nearest":
        raise ConfigError(
            "the network was prepared for rounding to nearest",
            where="weight_rounding",
            fix='Prepare it with QDiffConfig(weight_rounding="second_order"), or with the default, "auto"',
        )
    chunks = chunks_of(prepared, batches, where="round_weights")
    if not chunks:
        raise CalibrationError("there are no batches", where="round_weights", fix="Pass those calibrate was given")
    with Stream(chunks, cache_dir, cache_bytes, workers) as stream:
        loop = _Loop(prepared, stream, memory_cap_bytes)
        folder = resume_dir if workers.leads else None
        checkpoint = Checkpoint(folder, {} if folder is None else loop.fingerprint(), "rounding")
        with workers.together(), phase(progress, "rounding", len(loop.waiting), "layer") as shown:
            loop.run(checkpoint, shown)
    prepared.decided = replace(prepared.decided.with_weights(loop.chosen), weight_rounding="second_order")
    return RoundingReport(tuple(loop.chosen), loop.refused, loop.short)


class _Loop:
    """One run over the blocks.

    Attributes:
        waiting: ids of the layers that codes are to be chosen for.
        chosen, refused, short: what came of it so far.
    """

    def __init__(self, prepared: PreparedUNet, stream: Stream, cap: int):
        self.stream, self.workers, self.cap = stream, stream.workers, cap
        self.graph, self.config = prepared.graph_module, prepared.qconfig
        self.parameters = measure_activations(self.graph, self.config, prepared.decided)
        self.layers = {layer_id(node): node for node in nodes_with(self.graph, LayerPlan) if _has_weight(node)}
        self.known = _still_valid(prepared.decided.weights, self.layers)
        self.waiting = set(self.layers) - set(self.known)
        self.chosen: dict[str, WeightParameters] = {}
        self.refused: dict[str, str] = {}
        self.short: dict[str, int] = {}

    def fingerprint(self) -> dict[str, str]:
        """A digest of everything the result depends on, by what it is of."""
        # One after the other: those of half precision are widened for as long as they are looked at.
        weights = (part for layer in self.layers.values() for part in weight_and_bias(self.graph, layer))
        inputs: list[str | Tensor] = []
        for chunk in self.stream.chunks:
            inputs += [str(chunk.rows), *chunk.inputs.values()]
        known: list[str | Tensor] = []
        for name, weight in self.known.items():
            known += [name, weight.codes, weight.scales]
        return {
            "network": digest([str(self.graph.graph), *(each for each in weights if each is not None)]),
            "quantization": digest([json.dumps(self.config.to_json(), sort_keys=True)]),
            "calibration": digest([repr(self.parameters.activations), *known]),
            "set of samples": digest(inputs),
            "memory cap": str(self.cap),
        }

    def run(self, checkpoint: Checkpoint, shown: Phase) -> None:
        """All blocks; those a checkpoint holds are only gone through, for those that come after."""
        blocks = cut_into_blocks(self.graph, _is_quantized)
        left = len(self.waiting)
        for index, block in enumerate(blocks):
            if not left:
                break
            step = f"block-{index:04d}"
            layers = [layer_id(node) for node in block.layers if layer_id(node) in self.waiting]
            left -= len(layers)
            part = BlockOnIntegers(self.graph, self.config, block, self.parameters)
            found = self._known_to_first(checkpoint, step)
            if found is not None:
                self._restore(*found)
                shown.skip(len(layers))
            else:
                self._round(part, layers, shown)
                checkpoint.save(step, *self._state(layers))
            if left:
                forward = part.forward(self._weights(block))
                self.stream.pass_block(block, forward.run, forward.inputs)

    def _known_to_first(self, checkpoint: Checkpoint, step: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What the first process, which keeps the checkpoint, has of a step."""
        tensors, report = checkpoint.load(step) or ({}, None)
        report, tensors = self.workers.gather(report, tensors)[0]
        return None if report is None else (tensors, report)

    def _round(self, part: BlockOnIntegers, layers: Sequence[str], shown: Phase) -> None:
        """Choose the codes of a block's layers."""
        jobs, refused = jobs_of([self.layers[name] for name in layers], self.cap)
        for layer, why in refused:
            self.refused[layer_id(layer)] = why
            shown.advance()
        if not jobs:
            return
        firsts = [layer_id(job.layers[0]) for job in jobs]
        codes, places = part.codes(firsts, {**self.known, **self.chosen})
        with self.stream.keeping(codes.run, codes.inputs, len(set(places.values())), "codes") as kept:
            read = [kept[places[first]] for first in firsts]
            for some in _batched(list(zip(jobs, read, strict=True)), self.workers.count):
                self._share([job for job, _ in some], [name for _, name in some], shown)

    def _share(self, jobs: Sequence[Job], read: Sequence[str], shown: Phase) -> None:
        """Choose the codes of one job's layers for each process, part after part."""
        rank = self.workers.rank
        layers = {layer_id(each): each for each in jobs[rank].layers} if rank < len(jobs) else {}
        rounding = {name: self._in_parts(layer) for name, layer in layers.items()}
        for index in range(max(len(job.parts) for job in jobs)):
            own: SecondMoment | None = None
            for owner, (job, name) in enumerate(zip(jobs, read, strict=True)):
                if index >= len(job.parts):
                    continue
                moment = self._moment(job, job.parts[index], name)
                moment.add_up(self.workers, owner)
                if moment.count < moment.columns:
                    self.short |= {layer_id(each): moment.count for each in job.layers}
                if rank == owner:
                    own = moment
                del moment  # K x K numbers
            if own is not None:
                rows, hessian = own.count, own.hessian(last=True)
                factor = factorise(hessian, rows=rows, where=next(iter(layers)))
                for each in rounding.values():
                    each.add(jobs[rank].parts[index], factor)
        mine = {name: each.done() for name, each in rounding.items()}
        for report, tensors in self.workers.gather(*_stored(mine)):
            self.chosen |= _read_back(report, tensors)
        for job in jobs:
            shown.advance(len(job.layers))

    def _moment(self, job: Job, channels: slice, name: str) -> SecondMoment:
        """Of what a job's layers read, as far as this process has the rows."""
        activation = self.parameters.input(layer_id(job.layers[0]), 0)
        assert activation is not None
        gathering = Gathering(job, channels, self.stream.chunks, activation)
        for number in self.stream.numbers:
            gathering.add(self.stream.value(name, number), self.stream.chunks[number])
        return gathering.moment

    def _in_parts(self, layer: fx.Node) -> InParts:
        weight = weight_and_bias(self.graph, layer)[0].float()
        return InParts(weight, require(layer, LayerPlan).info.weight_bits, self.config.weight_range)

    def _weights(self, block: Block) -> dict[str, WeightParameters]:
        """Of the block's layers, as they will be; what has not been chosen is rounded to nearest."""
        found = {}
        for name in (layer_id(node) for node in block.layers if _has_weight(node)):
            weight = self.known.get(name) or self.chosen.get(name)
            found[name] = weight or _nearest(self.graph, self.layers[name], self.config.weight_range)
        return found

    def _state(self, layers: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What was decided about some layers, for a checkpoint."""
        chosen, tensors = _stored({name: self.chosen[name] for name in layers if name in self.chosen})
        report = {
            "chosen": chosen,
            "refused": {name: self.refused[name] for name in layers if name in self.refused},
            "short": {name: self.short[name] for name in layers if name in self.short},
        }
        return tensors, report

    def _restore(self, tensors: Mapping[str, Tensor], report: Mapping[str, Any]) -> None:
        self.chosen |= _read_back(report["chosen"], tensors)
        self.refused |= report["refused"]
        self.short |= report["short"]


def _stored(weights: Mapping[str, WeightParameters]) -> tuple[list[list[Any]], dict[str, Tensor]]:
    """Codes and scales, as JSON and tensors."""
    tensors = {f"codes.{index}": weight.codes for index, weight in enumerate(weights.values())}
    tensors |= {f"scales.{index}": weight.scales for index, weight in enumerate(weights.values())}
    return [[name, weight.bits] for name, weight in weights.items()], tensors


def _read_back(report: list[list[Any]], tensors: Mapping[str, Tensor]) -> dict[str, WeightParameters]:
    return {
        name: WeightParameters(tensors[f"codes.{index}"], tensors[f"scales.{index}"], bits)
        for index, (name, bits) in enumerate(report)
    }


def _batched(pairs: Sequence[tuple[Job, str]], count: int) -> Iterator[Sequence[tuple[Job, str]]]:
    for start in range(0, len(pairs), count):
        yield pairs[start : start + count]


def _still_valid(known: Mapping[str, WeightParameters], layers: Mapping[str, fx.Node]) -> dict[str, WeightParameters]:
    """The codes that layers have already, of the bits they are to have."""
    bits = {name: require(node, LayerPlan).info.weight_bits for name, node in layers.items()}
    return {name: weight for name, weight in known.items() if bits.get(name) == weight.bits}


def _nearest(graph: fx.GraphModule, layer: fx.Node, method: Any) -> WeightParameters:
    info = require(layer, LayerPlan).info
    axis = 1 if info.kind == "conv_transpose" else 0
    return nearest(weight_and_bias(graph, layer)[0].float(), info.weight_bits, axis, method)


def _is_quantized(node: fx.Node) -> bool:
    info = planned_info(node)
    return info is not None and info.quantized


def _has_weight(node: fx.Node) -> bool:
    info = planned_info(node)
    return info is not None and info.quantized and info.kind != "attention"
