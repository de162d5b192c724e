"""Some of the steps of a sampler, in place of all of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from qdiff_fx.errors import ConfigError

MOST_STEPS = 1 << 16


@dataclass(frozen=True)
class Schedule:
    """Steps number `chosen` of those that a scheduler takes after ``set_timesteps(out_of)``.

    Attributes:
        scheduler: name of the scheduler's class, in diffusers.
        num_train_timesteps: length of its training schedule.
        out_of: how many uniform steps it is a part of.
        chosen: their numbers, from 0 on, ascending; the first is 0, where the noise is.
        timesteps: what the network is called with at each of them, as ``pipe(..., timesteps=...)`` takes them.
        sigmas: the noise levels there, and the one at the end, of schedulers that go by them; else empty.

    Raises:
        ConfigError: it is none.
    """

    scheduler: str
    num_train_timesteps: int
    out_of: int
    chosen: tuple[int, ...]
    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.out_of <= MOST_STEPS or self.num_train_timesteps < 1:
            self._refuse(f"{self.out_of} steps of {self.num_train_timesteps} are no sampler's")
        if not self.chosen or self.chosen[0] != 0 or self.chosen[-1] >= self.out_of:
            self._refuse(f"steps {list(self.chosen)} are none of 0 to {self.out_of - 1} that begin with 0")
        if any(first >= second for first, second in pairwise(self.chosen)):
            self._refuse(f"steps {list(self.chosen)} do not ascend")
        if len(self.timesteps) != len(self.chosen) or len(self.sigmas) not in (0, len(self.chosen) + 1):
            self._refuse(f"{len(self.timesteps)} timesteps and {len(self.sigmas)} sigmas for {len(self.chosen)} steps")
        if not all(map(math.isfinite, (*self.timesteps, *self.sigmas))):
            self._refuse("timesteps and sigmas are not all finite")

    def __len__(self) -> int:
        return len(self.chosen)

    def part(self, numbers: Sequence[int]) -> Schedule:
        """Some of its own steps, by where they stand among `chosen`."""
        ends = tuple(self.sigmas[each] for each in (*numbers, len(self))) if self.sigmas else ()
        return replace(
            self,
            chosen=tuple(self.chosen[each] for each in numbers),
            timesteps=tuple(self.timesteps[each] for each in numbers),
            sigmas=ends,
        )

    def to_json(self) -> dict[str, Any]:
        """A dictionary of what JSON can hold; `schedule_from_json` of `storage` reads it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def text(self) -> str:
        return json.dumps(self.to_json(), sort_keys=True)

    def check_scheduler(self, scheduler: str, config: Mapping[str, Any]) -> None:
        """Raises ConfigError for a scheduler of another class or length than it was made for."""
        length = config.get("num_train_timesteps")
        if (scheduler, length) != (self.scheduler, self.num_train_timesteps):
            raise ConfigError(
                f"it was made for {self.scheduler} of {self.num_train_timesteps} training steps, "
                f"not for {scheduler} of {length}",
                where="schedule",
                fix="Make one for this scheduler with optimize_schedule",
            )

    def _refuse(self, what: str) -> None:
        raise ConfigError(what, where="schedule", fix="Make one with optimize_schedule")
