"""Times that can be compared: calls take turns, so that all meet the same machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from statistics import fmean, median
from typing import TypeVar

import torch
from torch import Tensor

Step = Callable[..., object]
Key = TypeVar("Key", bound=Hashable)
WARMUP = 2
FEWEST, MOST, SECONDS = 15, 60, 3.0
"""Rounds of whole networks: as many as fit into these seconds, but no fewer and no more than this."""
PAIRS = 4


def take_turns(
    calls: Mapping[Key, Step],
    inputs: Mapping[Key, list[Tensor]],
    rounds: int,
    before: Callable[[Key], None] = lambda _: None,
) -> dict[Key, list[float]]:
    """Seconds of each call, one per round; in every round each is made once, behind what comes `before` it, untimed."""
    seconds: dict[Key, list[float]] = {key: [] for key in calls}
    with torch.no_grad():
        for number in range(WARMUP + rounds):
            for key, call in calls.items():
                before(key)
                start = time.perf_counter()
                call(*inputs[key])
                if number >= WARMUP:
                    seconds[key].append(time.perf_counter() - start)
    return seconds


class Yardstick:
    """Times networks against one that stays the same.

    A clock says different things of one network half an hour apart, by more than what a layer's bits are worth.
    The ratio to another network in the same turns stays.

    Args:
        make: lowers the network to compare with.
        tensors: what it and all others are called with.

    Attributes:
        seconds: median time of its step.
    """

    def __init__(self, make: Callable[[], Step], tensors: list[Tensor]):
        self._make, self._tensors = make, tensors
        self.seconds = median(take_turns({0: make()}, {0: tensors}, FEWEST)[0])

    def __call__(self, make: Callable[[], Step]) -> float:
        """Seconds of another network where the yardstick takes `seconds`, by their ratio in the same rounds.

        Where its weights happen to lie in memory is worth a per cent of a step, and what is lowered second lies better.
        So both are lowered anew some times, each as often first as the other, and the mean counts.
        """
        rounds = min(max(int(SECONDS / (2 * self.seconds)), FEWEST), MOST)
        pairs = [[self._make, make], [make, self._make]] * (PAIRS // 2)
        first, second = ([self._ratio(pair, rounds) for pair in pairs[start::2]] for start in (0, 1))
        return self.seconds * fmean([*first, *(1 / ratio for ratio in second)])

    def _ratio(self, pair: list[Callable[[], Step]], rounds: int) -> float:
        """What the second takes as a share of what the first takes."""
        calls = {number: make() for number, make in enumerate(pair)}
        own, other = take_turns(calls, dict.fromkeys(calls, self._tensors), rounds).values()
        return median(b / a for a, b in zip(own, other, strict=True))
