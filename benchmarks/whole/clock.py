"""How long the parts of an image take."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn


class Time(NamedTuple):
    """Of the clock, and of the processor in all threads of this process; seconds."""

    seconds: float
    processor: float

    @staticmethod
    def now() -> Time:
        return Time(time.perf_counter(), time.process_time())

    def __sub__(self, other: Time) -> Time:
        return Time(self.seconds - other.seconds, self.processor - other.processor)

    def plus(self, other: Time, times: float = 1.0) -> Time:
        return Time(self.seconds + times * other.seconds, self.processor + times * other.processor)


NOTHING = Time(0.0, 0.0)


class Clock:
    """Watches networks by their hooks; what each took since it was last asked.

    Args:
        networks: by name; they call none of one another.
    """

    def __init__(self, networks: Mapping[str, nn.Module]):
        self._taken = dict.fromkeys(networks, NOTHING)
        self._begun = NOTHING
        for name, network in networks.items():
            network.register_forward_pre_hook(self._begin)
            network.register_forward_hook(lambda module, inputs, output, name=name: self._end(name))

    def read(self) -> dict[str, Time]:
        """And begin anew."""
        taken = self._taken
        self._taken = dict.fromkeys(taken, NOTHING)
        return taken

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        self._begun = Time.now()

    def _end(self, name: str) -> None:
        self._taken[name] = self._taken[name].plus(Time.now() - self._begun)
