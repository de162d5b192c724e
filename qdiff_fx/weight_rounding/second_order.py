"""The loop: gather Hessians for as many layers as fit in memory, round those, go on behind them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx
from tqdm import tqdm

from qdiff_fx.backends.common.base import weight_tensors
from qdiff_fx.calibration.data import Batch
from qdiff_fx.config import WeightRange
from qdiff_fx.errors import CalibrationError, ConfigError
from qdiff_fx.ir.annotations import nodes_with, require
from qdiff_fx.ir.arguments import operand
from qdiff_fx.ir.edit import get_attr_tensor
from qdiff_fx.ir.facts import LayerPlan, layer_id, layer_info, quantized_layers
from qdiff_fx.networks import PreparedUNet, QuantizedUNet
from qdiff_fx.passes.quantize.convert import convert
from qdiff_fx.passes.quantize.nearest import weight_scales
from qdiff_fx.quant.numerics import weight_range
from qdiff_fx.quant.parameters import WeightParameters
from qdiff_fx.weight_rounding.hessian import Hessian, hessian_of
from qdiff_fx.weight_rounding.nearest_plane import HessianFactor, factorise, feedback_codes

SCALE_RATIOS = (0.8, 0.85, 0.9, 0.95, 1.0, 1.05)  # of the scale nearest rounding would use; searched per channel
MEMORY_CAP = 2 << 30
CHUNK_ELEMENTS = 1 << 24  # of the weights, all their candidate scales counted, that are rounded at a time


@dataclass(frozen=True)
class Job:
    """One Hessian and the layers it serves: all that read the same codes through the same window."""

    hessian: Hessian
    layers: list[fx.Node] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return 4 * self.hessian.columns**2


@dataclass(frozen=True)
class RoundingReport:
    """Which layers were rounded to second order, and why the others were not, by module path."""

    rounded: tuple[str, ...]
    refused: dict[str, str]


def round_weights(
    prepared: PreparedUNet,
    batches: Iterable[Batch],
    *,
    memory_cap_bytes: int = MEMORY_CAP,
    progress: bool = True,
) -> RoundingReport:
    """Choose every weight code by what it does to its layer's output, given the inputs the layer really gets.

    Layers are taken in execution order, as many at a time as their Hessians fit under the cap; each group
    reads the activations of a network whose activations are quantized and whose earlier groups are already rounded.
    `convert_qdiff` then uses the codes found here. A layer that already has codes keeps them.

    Args:
        prepared: a calibrated network; the codes are kept in its `decided`.
        batches: mappings of its forward arguments; gone through once for every group of layers.
        memory_cap_bytes: of all Hessians gathered at a time; a layer with a larger one stays as it is.
        progress: show a bar.
    Raises:
        CalibrationError: there are no batches, or the network was not calibrated.
        ConfigError: the network was prepared for another rounding.
        ConversionError: the Hessian is not finite.
    """
    if prepared.qconfig.weight_rounding == "nearest":
        raise ConfigError(
            "the network was prepared for rounding to nearest",
            where="weight_rounding",
            fix='Prepare it with QDiffConfig(weight_rounding="second_order"), or with the default, "auto"',
        )
    batches = list(batches)
    if not batches:
        raise CalibrationError("there are no batches", where="round_weights", fix="Pass those calibrate was given")
    # Nearest codes to begin with, which the layers' own replace one after the other.
    nearest = replace(prepared.qconfig, weight_rounding="nearest")
    graph = convert(prepared.graph_module, nearest, prepared.decided)
    originals = {layer_id(node): node for node in nodes_with(prepared.graph_module, LayerPlan)}
    decided = prepared.decided.weights
    waiting = {
        name
        for name, node in originals.items()
        if name not in decided or decided[name].bits != require(node, LayerPlan).info.weight_bits
    }
    jobs, refused = _jobs(graph, waiting, memory_cap_bytes)
    network = QuantizedUNet(graph, prepared.signature, prepared.qconfig, "reference")
    groups = list(_groups(jobs, memory_cap_bytes))
    rounded = []
    with tqdm(total=len(groups) * len(batches), desc="rounding", unit="batch", disable=not progress) as bar:
        for group in groups:
            _gather(network, group, batches, bar)
            for job in group:
                factor = factorise(job.hessian.stop(), where=_path(job.layers[0]))
                for layer in job.layers:
                    _round(prepared, originals[layer_id(layer)], graph, layer, factor)
                    rounded.append(_path(layer))
    prepared.decided = replace(prepared.decided, weight_rounding="second_order")
    return RoundingReport(tuple(rounded), refused)


def _jobs(graph: fx.GraphModule, waiting: set[str], cap: int) -> tuple[list[Job], dict[str, str]]:
    """Watchers put before every layer whose Hessian can be had, in execution order, and the refusals."""
    jobs: dict[Any, Job] = {}
    refused: dict[str, str] = {}
    for layer in quantized_layers(graph):
        info = layer_info(layer)
        if info.float_reason or info.kind == "attention" or info.path not in waiting:
            continue
        hessian = hessian_of(layer)
        if isinstance(hessian, Hessian) and 4 * hessian.columns**2 > cap:
            hessian = f"its Hessian takes {4 * hessian.columns**2} bytes, the cap is {cap}"
        if isinstance(hessian, str):
            refused[info.path] = hessian
            continue
        key = layer.args[0], hessian.columns, str(hessian.window)
        if key not in jobs:
            jobs[key] = Job(hessian)
            name = f"hessian_{len(jobs)}"
            graph.add_module(name, hessian)
            with graph.graph.inserting_before(layer):
                graph.graph.call_module(name, (layer.args[0],))
        jobs[key].layers.append(layer)
    graph.recompile()
    return list(jobs.values()), refused


def _groups(jobs: list[Job], cap: int) -> Iterator[list[Job]]:
    group: list[Job] = []
    for job in jobs:
        if group and sum(each.nbytes for each in [*group, job]) > cap:
            yield group
            group = []
        group.append(job)
    if group:
        yield group


def _gather(network: QuantizedUNet, group: list[Job], batches: list[Batch], bar: Any) -> None:
    for job in group:
        job.hessian.start()
    for batch in batches:
        network(**batch)
        bar.update()


def _round(
    prepared: PreparedUNet, original: fx.Node, graph: fx.GraphModule, layer: fx.Node, factor: HessianFactor
) -> None:
    """Keep the codes with the prepared network, and let what follows see their effect."""
    weight = get_attr_tensor(prepared.graph_module, operand(original, 1)).detach().float()
    found = second_order(weight, layer_info(layer).weight_bits, factor, prepared.qconfig.weight_range)
    prepared.decided = prepared.decided.with_weights({layer_id(original): found})
    codes, scales = weight_tensors(graph, layer)
    codes.copy_(found.codes)
    scales.copy_(found.scales)


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


def _path(layer: fx.Node) -> str:
    return layer_info(layer).path
