"""The Hessian of each layer's rounding error, gathered while the network runs.

Rounding a layer's weights w changes its outputs by `E[(Δwᵀx)²] = Δwᵀ H Δw` per output channel: a quadratic in Δw whose
Hessian (up to a factor of 2) is the second moment `H = E[x xᵀ]` of its inputs. Every output channel has the same one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qdiff_fx.ir.annotations import value
from qdiff_fx.ir.arguments import bound, operand
from qdiff_fx.ir.edit import is_op

aten = torch.ops.aten

POSITIONS_PER_SAMPLE = 64  # neighbours say nearly the same; the Hessian of K columns needs a few K rows in all
BLOCK = 1024  # columns; the Hessian is symmetric, only blocks from the diagonal on are computed


class Hessian(nn.Module):
    """Adds up `xᵀ x` over the rows x that a linear layer, or an unfolded 2-d convolution, reads.

    Args:
        columns: K, entries of one row: in features, or in channels times the kernel's size.
        window: None for a linear layer, else a convolution's kernel, stride, padding and dilation, each (h, w).
    Attributes:
        total: float32 [K, K] while `open`, else empty.
        open: whether to add what comes.
    """

    _is_impure = True  # fx: adding up is a side effect, do not eliminate the call as dead code

    def __init__(self, columns: int, window: tuple[list[int], ...] | None):
        super().__init__()
        self.columns, self.window, self.open = columns, window, False
        self.total = torch.empty(0)
        self._generator = torch.Generator()

    def start(self) -> None:
        """Forget everything and take what comes."""
        self.total = torch.zeros(self.columns, self.columns)
        self._generator.manual_seed(0)
        self.open = True

    def stop(self) -> Tensor:
        """The sum, which is handed over."""
        total, self.total, self.open = self.total, torch.empty(0), False
        for start in range(BLOCK, self.columns, BLOCK):
            above = slice(0, start)
            rows = slice(start, start + BLOCK)
            total[rows, above] = total[above, rows].T
        return total

    def forward(self, x: Tensor) -> None:
        """Args: x, [..., K] for a linear layer, [N, C, H, W] for a convolution."""
        if self.open and x.numel():
            rows = self._rows(x.detach().float())
            for start in range(0, self.columns, BLOCK):
                self.total[start : start + BLOCK, start:].addmm_(rows[:, start : start + BLOCK].T, rows[:, start:])

    def _rows(self, x: Tensor) -> Tensor:
        if self.window is None:
            tokens = x.reshape(x.shape[0], -1, self.columns)
            return tokens[:, self._positions(tokens.shape[1])].flatten(0, 1)
        patches = _patches(x, *self.window)
        height, width = patches.shape[2:4]
        chosen = self._positions(height * width)
        picked = patches[:, :, chosen // width, chosen % width]  # [N, C, P, kh, kw]
        return picked.transpose(1, 2).reshape(-1, self.columns)

    def _positions(self, count: int) -> Tensor:
        """Positions to look at, the same ones in every sample of a batch and others in the next batch."""
        if count <= POSITIONS_PER_SAMPLE:
            return torch.arange(count)
        return torch.randperm(count, generator=self._generator)[:POSITIONS_PER_SAMPLE]


def _patches(x: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]) -> Tensor:
    """A view of what each output pixel sees: [N, C, H, W] -> [N, C, H', W', kh, kw]."""
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    spans = [dilation[i] * (kernel[i] - 1) + 1 for i in range(2)]
    windows = x.unfold(2, spans[0], stride[0]).unfold(3, spans[1], stride[1])
    return windows[..., :: dilation[0], :: dilation[1]]


def hessian_of(layer: fx.Node) -> Hessian | str:
    """What gathers the Hessian for a layer's weight, or why it cannot be gathered."""
    weight = value(operand(layer, 1))
    if is_op(layer, aten.linear.default):
        return Hessian(weight.shape[1], None)
    if not is_op(layer, aten.conv2d.default):
        return "only linear layers and 2-d convolutions have one"
    arguments = bound(layer)
    if arguments["groups"] != 1:
        return "the convolution is grouped"
    sizes = [_pair(arguments[name]) for name in ("stride", "padding", "dilation")]
    return Hessian(weight[0].numel(), (list(weight.shape[2:]), *sizes))


def _pair(size: list[int]) -> list[int]:
    return list(size) * 2 if len(size) == 1 else list(size)
