"""The modules that stand in for quantizers while a network is reconstructed: differentiable, switched off at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

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
        rows, shape = self._rows(x, timestep), [-1] + [1] * (x.dim() - 1)
        low, high = ((end - self.zero_point[rows]).to(torch.float32).view(shape) for end in self.ends)
        quantized: Tensor = _FakeQuantize.apply(x, self.scales()[rows].view(shape), low, high)  # type: ignore[no-untyped-call]  # of torch
        return quantized

    @property
    def ends(self) -> tuple[int, int]:
        """The least and the largest code."""
        return self.spec.qmin, self.spec.qmax

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


class _FakeQuantize(torch.autograd.Function):
    """`clamp(round(x / s), low, high) * s` in the dtype of x.

    The gradient by x goes through what does not clip; that by s is `clamp(...)` where it clips, elsewhere less x / s.
    Torch's own for a scale per row takes twice the time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
        exact = x * scale.reciprocal()
        steps = exact.round()
        held = torch.clamp(steps, low, high)
        if any(ctx.needs_input_grad):
            inside = held == steps
            by_scale = held.addcmul(exact, inside, value=-1) if ctx.needs_input_grad[1] else None
            ctx.save_for_backward(inside, by_scale)
        return held.mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (inside, by_scale), (gradient,) = ctx.saved_tensors, gradients
        by_x = gradient * inside if ctx.needs_input_grad[0] else None
        if by_scale is not None:
            by_scale = by_scale.mul_(gradient).sum(dim=list(range(1, gradient.dim())), keepdim=True)
        return by_x, by_scale, None, None


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
