"""AdaRound: learn for every weight whether to round it up or down (Nagel et al. 2020; Q-Diffusion, section 4.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qdiff_fx.quant.numerics import weight_range
from qdiff_fx.quant.parameters import WeightParameters

GAMMA, ZETA = -0.1, 1.1


class AdaRound(nn.Module):
    """`w = s * clamp(base + h(V), qmin, qmax)` with `h(V) = clamp(sigmoid(V) (ζ - γ) + γ, 0, 1)`, while it learns.

    `base` is the code below the weight. AdaRound starts learning from the float weight, wherever it lies between its
    two codes: from nearest codes that loses nothing. Codes that make up for each other's errors are worth more than
    where the float weight lies, so learning may start closer to them. A weight whose code is not one of its two
    neighbours starts from the end of that code's interval. Before and after learning, `w = s * codes`.

    Args:
        weight: float weight.
        start: codes and scales to start from.
    """

    weight: Tensor
    codes: Tensor

    def __init__(self, weight: Tensor, start: WeightParameters):
        super().__init__()
        self.weight, self.start, self.codes = weight, start, start.codes
        self.qmin, self.qmax = weight_range(start.bits)
        shape = [1] * weight.dim()
        shape[start.axis] = -1
        self.scales = start.scales.view(shape)
        self.up: nn.Parameter | None = None
        self._base = torch.empty(0)

    def begin(self, head_start: float = 0.0) -> nn.Parameter:
        """Start learning, this share of the way from the float weight to the codes; returns V."""
        steps, codes = self.weight.float() / self.scales, self.codes.to(torch.float32)
        self._base = torch.where(steps >= codes, codes, codes - 1)
        soft = torch.lerp((steps - self._base).clamp_(0, 1), codes - self._base, head_start)
        inverse = (soft - GAMMA) / (ZETA - GAMMA)
        self.up = nn.Parameter(torch.logit(inverse))
        return self.up

    def finish(self) -> None:
        """Round to what was learned."""
        assert self.up is not None
        self.codes = (self._base + (self.up.detach() >= 0)).clamp_(self.qmin, self.qmax).to(torch.int8)
        self.up, self._base = None, torch.empty(0)

    def soft(self) -> Tensor:
        """h(V), in [0, 1]."""
        assert self.up is not None
        return (torch.sigmoid(self.up) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def settled(self) -> bool:
        """Whether no weight lies between two codes any more."""
        soft = self.soft().detach()
        return bool(((soft == 0) | (soft == 1)).all())

    def forward(self) -> Tensor:
        if self.up is None:
            return self.codes.to(torch.float32) * self.scales
        return (self._base + self.soft()).clamp(self.qmin, self.qmax) * self.scales

    def regulariser(self, beta: float) -> Tensor:
        """`sum 1 - |2 h - 1|^β`: 0 when every weight has settled."""
        return (1 - (2 * self.soft() - 1).abs().pow(beta)).sum()
