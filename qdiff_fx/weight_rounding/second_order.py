"""The loop over a network's blocks: see what codes its layers read, choose theirs, go on behind them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from qdiff_fx.calibration.chunks import chunks_of
from qdiff_fx.calibration.data import Batch
from qdiff_fx.calibration.stream import Stream
from qdiff_fx.config import WeightRange
from qdiff_fx.errors import CalibrationError, ConfigError
from qdiff_fx.ir.annotations import nodes_with, require
from qdiff_fx.ir.blocks import cut_into_blocks
from qdiff_fx.ir.facts import LayerPlan, layer_id
from qdiff_fx.networks import PreparedUNet
from qdiff_fx.passes.quantize.check_scales import weight_and_bias
from qdiff_fx.passes.quantize.measure import measure_activations
from qdiff_fx.passes.quantize.nearest import nearest, weight_scales
from qdiff_fx.progress import Progress, phase
from qdiff_fx.quant.numerics import weight_range
from qdiff_fx.quant.parameters import ActivationParameters, WeightParameters
from qdiff_fx.weight_rounding.hessian import Hessian, hessian_of
from qdiff_fx.weight_rounding.nearest_plane import HessianFactor, factorise, feedback_codes
from qdiff_fx.weight_rounding.parts import BlockOnIntegers

SCALE_RATIOS = (0.8, 0.85, 0.9, 0.95, 1.0, 1.05)  # of the scale nearest rounding would use; searched per channel
MEMORY_CAP = 2 << 30
CHUNK_ELEMENTS = 1 << 24  # of the weights, all their candidate scales counted, that are rounded at a time


@dataclass(frozen=True)
class Job:
    """One Hessian and the layers it serves: all that read the same codes through the same window."""

    hessian: Hessian
    layers: list[fx.Node] = field(default_factory=list)


@dataclass(frozen=True)
class RoundingReport:
    """Which layers were rounded to second order, and why the others were not, by module path."""

    rounded: tuple[str, ...]
    refused: dict[str, str]


def round_weights(
    prepared: PreparedUNet,
    batches: Iterable[Batch],
    *,
    rows: int = 0,
    memory_cap_bytes: int = MEMORY_CAP,
    cache_dir: str | os.PathLike[str] | None = None,
    cache_bytes: int | None = None,
    progress: bool | Progress = True,
) -> RoundingReport:
    """Choose every weight code by what it does to its layer's output, given the inputs the layer really gets.

    The rows stream through the network block by block, once: each layer reads what integer kernels make of the layers
    before it, which are already rounded; those of its own block still have weights of 8 bits. `convert_qdiff` then uses
    the codes found here. A layer that already has codes keeps them.

    Args:
        prepared: a calibrated network; the codes are kept in its `decided`.
        batches: mappings of its forward arguments.
        rows: how many of their samples are shown, evenly over the timesteps; 0: all.
        memory_cap_bytes: of a Hessian; a layer with a larger one is rounded to nearest.
        cache_dir: where activations go while this runs; the system's folder for temporary files by default.
        cache_bytes: what they may take; None: what the disk has.
        progress: show a bar, or report to whoever shows one.
    Raises:
        CalibrationError: there are no batches, or the network was not calibrated; an activation is not a number; the
            disk is full, or the cap is reached.
        ConfigError: the network was prepared for another rounding.
        ConversionError: the Hessian is not finite.
    """
    if prepared.qconfig.weight_rounding == "nearest":
        raise ConfigError(
            "the network was prepared for rounding to nearest",
            where="weight_rounding",
            fix='Prepare it with QDiffConfig(weight_rounding="second_order"), or with the default, "auto"',
        )
    chunks = chunks_of(prepared, batches, most_rows=rows, where="round_weights")
    if not chunks:
        raise CalibrationError("there are no batches", where="round_weights", fix="Pass those calibrate was given")
    with Stream(chunks, cache_dir, cache_bytes) as stream:
        loop = _Loop(prepared, stream, memory_cap_bytes)
        with phase(progress, "rounding", len(loop.waiting), "layer") as shown:
            loop.run(shown.advance)
    prepared.decided = replace(prepared.decided.with_weights(loop.chosen), weight_rounding="second_order")
    return RoundingReport(tuple(loop.chosen), loop.refused)


class _Loop:
    """One run over the blocks.

    Attributes:
        waiting: ids of the layers that codes are to be chosen for.
        chosen, refused: what came of it so far.
    """

    def __init__(self, prepared: PreparedUNet, stream: Stream, cap: int):
        self.prepared, self.stream, self.cap = prepared, stream, cap
        self.graph, self.config = prepared.graph_module, prepared.qconfig
        self.parameters = measure_activations(self.graph, self.config, prepared.decided)
        self.layers = {layer_id(node): node for node in nodes_with(self.graph, LayerPlan) if _has_weight(node)}
        known = prepared.decided.weights
        self.known = {
            name: known[name]
            for name, node in self.layers.items()
            if name in known and known[name].bits == require(node, LayerPlan).info.weight_bits
        }
        self.waiting = set(self.layers) - set(self.known)
        self.chosen: dict[str, WeightParameters] = {}
        self.refused: dict[str, str] = {}

    def run(self, advance: Any) -> None:
        blocks = cut_into_blocks(self.graph, lambda node: _is_quantized(node))
        ahead = len(self.waiting)
        for block in blocks:
            if not ahead:
                break
            part = BlockOnIntegers(self.graph, self.config, block, self.parameters)
            layers = [name for name in part.layers if name in self.waiting]
            ahead -= len(layers)
            jobs = self._jobs(part, layers)
            self._round(part, jobs, advance)
            advance(len(layers) - sum(len(job.layers) for job in jobs))
            if ahead:
                forward = part.forward(self._weights(part))
                self.stream.pass_block(block, forward.run, forward.inputs, lambda count: None)

    def _weights(self, part: BlockOnIntegers) -> dict[str, WeightParameters]:
        """Of the block's layers, as they will be."""
        found = {**self.known, **self.chosen}
        for name in part.layers:
            if name in self.layers and name not in found:
                node = self.layers[name]
                info = require(node, LayerPlan).info
                axis = 1 if info.kind == "conv_transpose" else 0
                weight = weight_and_bias(self.graph, node)[0].float()
                found[name] = nearest(weight, info.weight_bits, axis, self.config.weight_range)
        return found

    def _jobs(self, part: BlockOnIntegers, layers: list[str]) -> list[Job]:
        jobs: dict[Any, Job] = {}
        for name in layers:
            layer = self.layers[name]
            hessian = hessian_of(layer)
            if isinstance(hessian, Hessian) and 4 * hessian.columns**2 > self.cap:
                hessian = f"its Hessian takes {4 * hessian.columns**2} bytes, the cap is {self.cap}"
            if isinstance(hessian, str):
                self.refused[name] = hessian
                continue
            jobs.setdefault((layer.args[0], hessian.columns, str(hessian.window)), Job(hessian)).layers.append(layer)
        return list(jobs.values())

    def _round(self, part: BlockOnIntegers, jobs: list[Job], advance: Any) -> None:
        """Choose the codes of a block's layers."""
        if not jobs:
            return
        firsts = [layer_id(job.layers[0]) for job in jobs]
        codes, places = part.codes(firsts, {**self.known, **self.chosen})
        for number, outputs in self.stream.run(codes.run, codes.inputs):
            for index, output in enumerate(outputs):
                self.stream.store.write(f"codes {index}", number, output)
        for job, first in zip(jobs, firsts, strict=True):
            name = f"codes {places[first]}"
            factor = self._factor(job, first, name)
            for layer in job.layers:
                weight = weight_and_bias(self.graph, layer)[0].float()
                bits = require(layer, LayerPlan).info.weight_bits
                self.chosen[layer_id(layer)] = second_order(weight, bits, factor, self.config.weight_range)
            advance(len(job.layers))
        for index in sorted(set(places.values())):
            self.stream.store.drop(f"codes {index}")

    def _factor(self, job: Job, layer: str, name: str) -> HessianFactor:
        activation = self.parameters.input(layer, 0)
        assert activation is not None
        job.hessian.start()
        for number, chunk in enumerate(self.stream.chunks):
            job.hessian(_values(self.stream.store.read(name, number), activation, chunk.bin))
        return factorise(job.hessian.stop(), where=layer)


def _values(codes: Tensor, activation: ActivationParameters, bin_index: int) -> Tensor:
    params = activation.params
    row = bin_index if params.per_timestep else 0
    return (codes.float() - params.zero_point[row]) * params.scale[row]


def _is_quantized(node: fx.Node) -> bool:
    return node in nodes_with([node], LayerPlan) and require(node, LayerPlan).info.quantized


def _has_weight(node: fx.Node) -> bool:
    info = require(node, LayerPlan).info
    return info.quantized and info.kind != "attention"


def second_order(weight: Tensor, bits: int, factor: HessianFactor, method: WeightRange) -> WeightParameters:
    """The codes, and per output channel the scale, under which the layer's output changes least.

    Args:
        weight: float32 [O, ...], K entries per output channel.
        factor: of the Hessian [K, K] of what it is multiplied with.
        method: how the scale is found that `SCALE_RATIOS` multiply.
    """
    qmin, qmax = weight_range(bits)
    candidates = weight_scales(weight, bits, method=method)[:, None] * torch.tensor(SCALE_RATIOS)  # [O, R]
    codes, chosen = [], []
    step = max(1, CHUNK_ELEMENTS // (weight[0].numel() * len(SCALE_RATIOS)))
    for rows, scales in zip(weight.flatten(1).split(step), candidates.split(step)):
        repeated = rows.repeat_interleave(len(SCALE_RATIOS), 0)
        tried, error = feedback_codes(repeated, scales.flatten(), factor, qmin, qmax)
        best = error.view(scales.shape).argmin(1)
        each = torch.arange(len(rows))
        codes.append(tried.view(len(rows), len(SCALE_RATIOS), -1)[each, best])
        chosen.append(scales[each, best])
    return WeightParameters(torch.cat(codes).view(weight.shape), torch.cat(chosen), bits)
