"""What is made of a layer's weight before it is packed, so that `int_conv` can compute the layer."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from qdiff_fx.backends.common.geometry import Axis


class WeightForm(Protocol):
    """A way to rearrange a weight; equal ones make the same of it."""

    def arrange(self, codes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        """int8 codes (out, in, ...) and float32 scales (out,), of the codes and scales that the layer has."""


@dataclass(frozen=True)
class AsItIs:
    """The weight of a convolution or a linear layer."""

    def arrange(self, codes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        return codes, scales


@dataclass(frozen=True)
class OfGroups:
    """Of the weight (groups * out, in, ...) of a grouped convolution some groups: (count * out, count * in, ...).

    Between channels of different groups lie zeros.
    """

    first: int
    count: int
    groups: int

    def arrange(self, codes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        groups = slice(self.first, self.first + self.count)
        found = codes.unflatten(0, (self.groups, -1))[groups]
        blocks = found.new_zeros(self.count, found.shape[1], self.count, *found.shape[2:])
        for group, block in enumerate(found):
            blocks[group, :, group] = block
        return blocks.flatten(2, 3).flatten(0, 1), scales.unflatten(0, (self.groups, -1))[groups].flatten()


@dataclass(frozen=True)
class AlongTime:
    """Of the weight (out, in, t, 1, 1) of a convolution of volumes that of one of images: (out, in, t, 1)."""

    def arrange(self, codes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        return codes.flatten(3), scales


@dataclass(frozen=True)
class FramesAsChannels:
    """Of the weight (out, in, t, h, w) of a convolution of volumes that of one of images: (out, t * in, h, w)."""

    def arrange(self, codes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        return codes.transpose(1, 2).flatten(1, 2), scales


class Tap(NamedTuple):
    """A weight by which a transposed convolution takes ``x[m + offset]`` to ``out[stride * m + phase]``."""

    phase: int
    weight: int
    offset: int


@dataclass(frozen=True)
class Phases:
    """A transposed convolution as an ordinary one, which computes `stride` neighbours along each axis as channels.

    The weight (in, out, k, ...) becomes (stride * ... * out, in, window, ...). What of the window one of the neighbours
    does not read is zero.
    """

    axes: tuple[Axis, ...]

    def arrange(self, codes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        inputs, outputs = codes.shape[:2]
        found = codes.new_zeros(*self.strides, outputs, inputs, *self.window)
        for taps in itertools.product(*map(_taps, self.axes)):
            places = (tap.offset - first for tap, first in zip(taps, self._firsts, strict=True))
            to: Any = (*(tap.phase for tap in taps), ..., *places)
            weights: Any = (..., *(tap.weight for tap in taps))
            found[to] = codes[weights].T
        return found.flatten(0, len(self.axes)), scales.repeat(self.count)

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(axis.stride for axis in self.axes)

    @property
    def count(self) -> int:
        return math.prod(self.strides)

    @cached_property
    def window(self) -> tuple[int, ...]:
        """The sizes of the ordinary convolution's kernel."""
        lasts = (max(tap.offset for tap in _taps(axis)) for axis in self.axes)
        return tuple(last - first + 1 for first, last in zip(self._firsts, lasts, strict=True))

    @property
    def padding(self) -> tuple[int, ...]:
        """Of the ordinary convolution, before and behind along each axis."""
        made = zip(self.axes, self._firsts, self.window, strict=True)
        return tuple(side for axis, first, size in made for side in (-first, _steps(axis) + first + size - 2))

    @property
    def surplus(self) -> tuple[int, ...]:
        """How many places too many it computes at the end of each axis."""
        return tuple(axis.stride * _steps(axis) - _reach(axis) for axis in self.axes)

    @property
    def waste(self) -> float:
        """How many products the ordinary convolution makes for each of the transposed one."""
        return self.count * math.prod(self.window) / math.prod(axis.kernel for axis in self.axes)

    @cached_property
    def _firsts(self) -> tuple[int, ...]:
        return tuple(min(tap.offset for tap in _taps(axis)) for axis in self.axes)


def _taps(axis: Axis) -> list[Tap]:
    found = []
    for index in range(axis.kernel):
        offset, phase = divmod(axis.dilation * index - axis.padding, axis.stride)
        found.append(Tap(phase, index, -offset))
    return found


def _reach(axis: Axis) -> int:
    """How many places of the result an input of one place makes."""
    return axis.dilation * (axis.kernel - 1) + 1 + axis.extra - 2 * axis.padding


def _steps(axis: Axis) -> int:
    """The same in whole strides."""
    return -(-_reach(axis) // axis.stride)
