"""AdaRound: learn for every weight whether to round it up or down (Nagel et al. 2020; Q-Diffusion, section 4.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qdiff_fx.kernels.ops.adaround_step import GAMMA, ZETA, rounded_up
from qdiff_fx.quant.numerics import weight_range
from qdiff_fx.quant.parameters import WeightParameters


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
        self.log_factor = nn.Parameter(torch.zeros_like(start.scales.view(shape)), requires_grad=False)
        self._measured = start.scales.view(shape)
        self.learner: Learner | None = None

    @property
    def scales(self) -> Tensor:
        """Those of the start times `exp(log_factor)`, like the weight but for the other axes, of which there is one."""
        return self._measured * self.log_factor.exp()

    def begin(self, head_start: float = 0.0, dtype: torch.dtype = torch.float32) -> Learner:
        """Start learning a weight of that dtype, this share of the way from the float weight to the codes."""
        steps, codes = self.weight.float() / self.scales, self.codes.to(torch.float32)
        base = torch.where(steps >= codes, codes, codes - 1)
        soft = torch.lerp((steps - base).clamp_(0, 1), codes - base, head_start)
        up = torch.logit((soft - GAMMA) / (ZETA - GAMMA))
        self.learner = Learner(self.start, up, base, dtype)
        return self.learner

    def finish(self) -> None:
        """Round to what was learned."""
        assert self.learner is not None
        self.codes = self.learner.codes()
        self.learner = None

    def forward(self) -> Tensor:
        if self.learner is None:
            return self.codes.to(torch.float32) * self.scales
        return self.learner.weight


class Learner:
    """V and what Adam remembers of it, as rows of numbers in the order that the weight has in memory.

    Attributes:
        weight: a leaf, which the loss is differentiated by; every step writes the next one into it.

    Args:
        start: the scales, their axis, the bits.
        up: V, like the weight.
        base: the code below each weight, float32.
        dtype: of `weight`.
    """

    def __init__(self, start: WeightParameters, up: Tensor, base: Tensor, dtype: torch.dtype):
        self.bits, self.scales = start.bits, start.scales.to(torch.float32).contiguous()
        self.order = _memory_order(up.dim(), start.axis)
        self.up, rows = self._rows(up).clone(), self._rows(base)
        self.base = rows.to(torch.int8)
        self.first, self.second = torch.zeros_like(self.up), torch.zeros_like(self.up)
        self.taken = 0
        soft = (rows + rounded_up(self.up)).clamp_(*weight_range(self.bits)) * self.scales[:, None]
        self._written = soft.to(dtype)
        self.weight = self._like_weight(self._written, up.shape).requires_grad_()

    @torch.no_grad()
    def step(self, rate: float, pull: float = 0.0, beta: float = 2.0) -> None:
        """A step of Adam by the weight's gradient, which is forgotten, and that of `pull * sum 1 - |2 h - 1|^beta`."""
        assert self.weight.grad is not None
        gradient, self.weight.grad = self._rows(self.weight.grad), None
        self.taken += 1
        torch.ops.qdiff.adaround_step(
            self.up, self.first, self.second, self._written, self.base, self.scales, gradient,
            self.bits, self.taken, rate, pull, beta,
        )  # fmt: skip

    def settled(self) -> bool:
        """Whether no weight lies between two codes any more."""
        soft = rounded_up(self.up)
        return bool(((soft == 0) | (soft == 1)).all())

    def codes(self) -> Tensor:
        """int8, like the weight: to the side that each lies on."""
        codes = (self.base + (self.up >= 0)).clamp_(*weight_range(self.bits)).to(torch.int8)
        return self._like_weight(codes, self.weight.shape).contiguous()

    def _rows(self, tensor: Tensor) -> Tensor:
        """[output channels, the rest], in the order of memory."""
        return tensor.permute(self.order).flatten(1).contiguous()

    def _like_weight(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """A view of rows as the weight has them."""
        back = [self.order.index(dim) for dim in range(len(shape))]
        return rows.view([shape[dim] for dim in self.order]).permute(back)


def _memory_order(dims: int, axis: int) -> list[int]:
    """The dimensions from the outermost in: output channels, for images the window, then input channels.

    In this order convolutions of images that are channels last take their weights without another copy.
    """
    rest = [dim for dim in range(dims) if dim != axis]
    return [axis, *rest[1:], rest[0]] if dims == 4 else [axis, *rest]
