"""Which steps to take: dynamic programming over where they lead.

Of all ways to be at step j after k calls of the network, the one that is nearest there to where all steps lead is kept.
Its error is that of the real samples, so what earlier steps did wrong counts as far as the network did not make it
good, and errors that cancel do. For every k the network is asked at each step once: one run of the sampler.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from qdiff_fx.schedules.trajectories import At


class Steps(Protocol):
    """How samples move; see `trajectories.Sampling`."""

    def predictions(self, arrivals: Mapping[int, Tensor]) -> dict[int, At]:
        """What the network predicts of samples at steps."""

    def arrived(self, way: Sequence[At], end: int) -> Tensor:
        """Where a way leads."""


@dataclass(frozen=True)
class Placed:
    """The best way of so many steps.

    Attributes:
        steps: their numbers.
        error: root mean square of what differs in the images.
    """

    steps: tuple[int, ...]
    error: float


@dataclass(frozen=True)
class _Arrival:
    way: tuple[At, ...]
    sample: Tensor
    error: float


def placed(moves: Steps, first: At, reference: Sequence[Tensor]) -> Iterator[Placed]:
    """The best way of one step, of two, and so on, to all.

    Args:
        moves: how samples move.
        first: step 0.
        reference: the sample at every step, and at the end, where all steps are taken.
    """
    last = len(reference) - 1
    ways: dict[int, tuple[At, ...]] = {0: (first,)}
    for calls in range(1, last + 1):
        best = {end: _nearest(moves, ways, end, reference[end]) for end in range(calls, last + 1)}
        yield Placed(tuple(each.step for each in best[last].way), best[last].error)
        if calls < last:
            samples = {end: arrival.sample for end, arrival in best.items() if end < last}
            predicted = moves.predictions(samples)
            ways = {end: (*best[end].way, at) for end, at in predicted.items()}


def _nearest(moves: Steps, ways: Mapping[int, tuple[At, ...]], end: int, reference: Tensor) -> _Arrival:
    """Of all ways that can go there, the one that arrives nearest."""

    def arrivals() -> Iterator[_Arrival]:
        for start, way in ways.items():
            if start < end:
                sample = moves.arrived(way, end)
                error = float((sample.double() - reference.double()).square().mean().sqrt())
                yield _Arrival(way, sample, error)

    return min(arrivals(), key=lambda arrival: arrival.error)
