"""The modules that stand in for quantizers while a network is reconstructed: differentiable, switched off at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from qdiff_fx.quant.qparams import QParams
from qdiff_fx.quant.timestep_bins import TimestepBins
from qdiff_fx.reconstruction.adaround import AdaRound


@dataclass
class Switch:
    """Whether the quantizers of one simulated network act; off, it computes what the float network does."""

    weights: bool = False
    activations: bool = False

    def set(self, *, weights: bool, activations: bool) -> None:
        self.weights, self.activations = weights, activations

    @contextmanager
    def off(self) -> Iterator[None]:
        """Compute in float inside the with block."""
        before = self.weights, self.activations
        self.weights = self.activations = False
        try:
            yield
        finally:
            self.weights, self.activations = before


class ActivationQuantizer(nn.Module):
    """Fake quantization of `x`, each sample by the scale of its own timestep bin.

    `x̂ = (clamp(round(x / s) + z, qmin, qmax) - z) * s` with the straight-through estimator for `round` (LSQ, Esser
    et al. 2020), so gradients reach both x and s. The table of scales is the measured one times `exp(log_factor)`,
    one learned factor per row; zero-points stay.

    Args:
        params: measured scales and zero-points [T], or [1].
        schedule: what the T rows divide.
    """

    table: Tensor
    zero_point: Tensor

    def __init__(self, params: QParams, switch: Switch, schedule: TimestepBins):
        super().__init__()
        self.spec, self.switch, self.schedule = params.spec, switch, schedule
        self.register_buffer("table", torch.tensor(params.scale, dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor(params.zero_point, dtype=torch.int32))
        self.log_factor = nn.Parameter(torch.zeros(len(params.scale)), requires_grad=False)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        """x [R, ...], R the batch B or a multiple of it, or x belongs to every sample; timestep [B]."""
        if not self.switch.activations:
            return x
        rows = self._rows(x, timestep)
        scale, zero_point = self.scales()[rows], self.zero_point[rows]
        ends = self.spec.qmin, self.spec.qmax
        if not self.log_factor.requires_grad:
            return torch.fake_quantize_per_channel_affine(x, scale, zero_point, 0, *ends)
        learnable = torch._fake_quantize_learnable_per_channel_affine
        return learnable(x, scale, zero_point.float(), 0, *ends, 1.0)

    def scales(self) -> Tensor:
        """float32 [T]."""
        return self.table * self.log_factor.exp()

    def decided(self) -> QParams:
        """The parameters as they are now."""
        return QParams(self.spec, tuple(self.scales().tolist()), tuple(self.zero_point.tolist()))

    def _rows(self, x: Tensor, timestep: Tensor) -> Tensor:
        """The row of the table for each of the R rows of x."""
        count = len(self.table)
        if count == 1:
            return torch.zeros(x.shape[0], dtype=torch.int64)
        return replace(self.schedule, bins=count).rows_of(timestep, x.shape[0])


class LayerWeight(nn.Module):
    """The weight of one layer: the float one, or `codes * scales` of whatever rounds it.

    Args:
        rounding: holds the float weight, and returns the quantized one when called.
    """

    rounding: AdaRound

    def __init__(self, rounding: AdaRound, switch: Switch):
        super().__init__()
        self.rounding, self.switch = rounding, switch

    def forward(self) -> Tensor:
        return self.rounding() if self.switch.weights else self.rounding.weight


class LayerBias(nn.Module):
    """The bias of one layer: the float one, or with quantized weights one of its own."""

    def __init__(self, bias: Tensor, decided: Tensor, switch: Switch):
        super().__init__()
        self.bias, self.switch = bias, switch
        self.decided = nn.Parameter(decided.clone(), requires_grad=False)

    def forward(self) -> Tensor:
        return self.decided if self.switch.weights else self.bias
