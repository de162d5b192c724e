"""AdaRound: learn for every weight whether to round it up or down (Nagel et al. 2020; Q-Diffusion, section 4.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qdiff_fx.decisions import DecidedLayer
from qdiff_fx.numerics import weight_range

GAMMA, ZETA = -0.1, 1.1


class AdaRound(nn.Module):
    """`w = s * clamp(base + h(V), qmin, qmax)` with `h(V) = clamp(sigmoid(V) (ζ - γ) + γ, 0, 1)`.

    `base` is the code below the weight and the start is the float weight itself, wherever it lies between two codes.
    A start from other codes than the nearest ones is the point between them and their neighbour towards the weight.

    Args:
        weight: float weight.
        start: codes and scales to start from.
        bits: of the codes.
        axis: of the output channels.
    """

    def __init__(self, weight: Tensor, start: DecidedLayer, bits: int, axis: int):
        super().__init__()
        self.qmin, self.qmax = weight_range(bits)
        self.start = start
        shape = [1] * weight.dim()
        shape[axis] = -1
        self.scales = start.scales.view(shape)
        steps, codes = weight / self.scales, start.codes.to(torch.float32)
        self.base = torch.where(steps >= codes, codes, codes - 1).clamp_(self.qmin, self.qmax)
        self.between = (steps - self.base).clamp_(0, 1)
        self.up: nn.Parameter | None = None
        self.codes = start.codes

    def begin(self) -> nn.Parameter:
        """Start learning; returns V."""
        inverse = (self.between - GAMMA) / (ZETA - GAMMA)
        self.up = nn.Parameter(torch.logit(inverse))
        return self.up

    def finish(self) -> None:
        """Round to what was learned."""
        self.codes = self.hard_codes()
        self.up = None

    def hard_codes(self) -> Tensor:
        """int8 codes on the side of each weight that V is on."""
        if self.up is None:
            return self.codes
        return (self.base + (self.up.detach() >= 0)).clamp_(self.qmin, self.qmax).to(torch.int8)

    def soft(self) -> Tensor:
        """h(V), in [0, 1]."""
        assert self.up is not None
        return (torch.sigmoid(self.up) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def forward(self) -> Tensor:
        if self.up is None:
            return self.codes.to(torch.float32) * self.scales
        return (self.base + self.soft()).clamp(self.qmin, self.qmax) * self.scales

    def regulariser(self, beta: float) -> Tensor:
        """`sum 1 - |2 h - 1|^β`: 0 when every weight has decided."""
        return (1 - (2 * self.soft() - 1).abs().pow(beta)).sum()
