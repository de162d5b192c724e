"""Times that can be compared: calls take turns, so that all meet the same machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch
from torch import Tensor

Step = Callable[..., object]
WARMUP, ROUNDS = 2, 25
FEWEST, MOST, SECONDS = 15, 60, 3.0
"""Rounds of whole networks: as many as fit into these seconds, but no fewer and no more than this."""


def take_turns(
    calls: Mapping[int, Step], inputs: Mapping[int, list[Tensor]], rounds: int = ROUNDS
) -> dict[int, list[float]]:
    """Seconds of each call, one per round; in every round each is made once."""
    seconds: dict[int, list[float]] = {key: [] for key in calls}
    with torch.no_grad():
        for number in range(WARMUP + rounds):
            for key, call in calls.items():
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
        step: the network to compare with.
        tensors: what it and all others are called with.

    Attributes:
        seconds: median time of the step.
    """

    def __init__(self, step: Step, tensors: list[Tensor]):
        self._step, self._tensors = step, tensors
        self.seconds = median(take_turns({0: step}, {0: tensors}, FEWEST)[0])

    def __call__(self, step: Step) -> float:
        """Seconds of another network where the yardstick takes `seconds`: their median ratio over the rounds."""
        rounds = min(max(int(SECONDS / (2 * self.seconds)), FEWEST), MOST)
        own, other = take_turns({0: self._step, 1: step}, {0: self._tensors, 1: self._tensors}, rounds).values()
        return self.seconds * median(b / a for a, b in zip(own, other, strict=True))
