"""What every quantizer of a prepared graph is set to: measured from statistics, unless reconstruction decided.

A decision is a note on a node of the prepared graph, meta "decided" (`DecidedLayer` on a layer, `QParams` on an
observer). Conversion reads it here, and so does reconstruction when it starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx

from qdiff_fx.config import QDiffConfig
from qdiff_fx.ir.annotations import require
from qdiff_fx.ir.edit import ancestors, get_attr_tensor
from qdiff_fx.ir.facts import ActivationPlan, LayerPlan, is_sample, is_timestep, timestep_input
from qdiff_fx.observers import TimestepObserver, choose_range
from qdiff_fx.quant.numerics import choose_qparams, quantize, weight_range, weight_scales
from qdiff_fx.quant.qparams import WIDE_BITS, QParams, TensorSpec

DECIDED = "decided"


@dataclass(frozen=True)
class DecidedLayer:
    """The integers a weight becomes.

    Attributes:
        codes: int8, shaped like the weight.
        scales: float32 [O], one for each output channel.
        bias: the layer's new bias [O]; ``None`` keeps the one it has.
    """

    codes: Tensor
    scales: Tensor
    bias: Tensor | None = None


def weight_axis(plan: LayerPlan) -> int:
    """The dimension of the weight that its output channels lie along."""
    return 1 if plan.info.kind == "conv_transpose" else 0


def layer_decision(gm: fx.GraphModule, node: fx.Node, plan: LayerPlan, config: QDiffConfig) -> DecidedLayer:
    """Codes and scales of a planned layer: those decided, or every weight rounded to nearest."""
    if DECIDED in node.meta:
        return cast(DecidedLayer, node.meta[DECIDED])
    bits, axis = plan.info.weight_bits, weight_axis(plan)
    weight = get_attr_tensor(gm, cast(fx.Node, node.args[1])).detach().float()
    scales = weight_scales(weight, bits, axis=axis, method=config.weight_range)
    zero_points = torch.zeros_like(scales, dtype=torch.int64)
    codes = quantize(weight, scales, zero_points, *weight_range(bits), axis=axis, dtype=torch.int8)
    return DecidedLayer(codes, scales)


def activation_decision(gm: fx.GraphModule, node: fx.Node, config: QDiffConfig) -> QParams:
    """Scale and zero-point of an observed activation: a table over the timestep bins where the configuration asks.

    Raises:
        CalibrationError: the observer saw no data.
    """
    if DECIDED in node.meta:
        return cast(QParams, node.meta[DECIDED])
    observer = cast(TimestepObserver, gm.get_submodule(str(node.target)))
    return measure(observer, require(node, ActivationPlan), per_timestep=has_table(gm, node, config))


def is_wide(node: fx.Node) -> bool:
    """Whether an observed activation gets 16 bits, in two codes."""
    return require(node, ActivationPlan).spec.bits == WIDE_BITS


def measure(observer: TimestepObserver, plan: ActivationPlan, *, per_timestep: bool) -> QParams:
    """The parameters that an observer's statistics give.

    Raises:
        CalibrationError: the observer saw no data.
    """
    if plan.spec.bits == WIDE_BITS:
        # Those of the first of two codes. The second pays for the range: nothing needs to be clipped.
        plan = ActivationPlan(TensorSpec(8), "minmax")
    spec = plan.spec
    lo, hi = choose_range(
        observer.statistics(), plan.act_range, bits=spec.bits, per_timestep=per_timestep, symmetric=spec.symmetric
    )
    scale, zero_point = choose_qparams(lo, hi, spec.bits, symmetric=spec.symmetric, signed=spec.signed)
    return QParams(spec, tuple(scale.reshape(-1).tolist()), tuple(zero_point.reshape(-1).tolist()))


def has_table(gm: fx.GraphModule, node: fx.Node, config: QDiffConfig) -> bool:
    """Whether an observed activation gets a row for each timestep bin.

    Not where the network has no timestep to look a row up by, nor for a value that cannot change from step to
    step: it depends on the conditioning alone.
    """
    if config.act_granularity != "timestep" or timestep_input(gm) is None:
        return False
    source = cast(fx.Node, node.args[0])
    inputs = {each for each in ancestors(source) | {source} if each.op == "placeholder"}
    return not inputs or any(is_sample(each) or is_timestep(each) for each in inputs)
