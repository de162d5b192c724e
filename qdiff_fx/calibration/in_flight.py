"""Show a trajectory to observers while it is drawn: the step that the sampler takes is the one they see.

The prepared network computes what the float one does. So in the calls that observers are to see it takes the float
network's place, and nothing is computed twice. Drawing first and showing the records afterwards tells the observers
the same to the bit, as they get the same calls; that is how a run that was killed goes on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from qdiff_fx.calibration.data import GOLDEN
from qdiff_fx.calibration.kept import KeptStatistics
from qdiff_fx.calibration.plan import CollectionPlan
from qdiff_fx.calibration.record import Record
from qdiff_fx.calibration.recorder import TrajectoryRecorder
from qdiff_fx.calibration.run import check_batch
from qdiff_fx.calibration.schedule import is_settled, schedule_of, timesteps_of
from qdiff_fx.observers import Observer
from qdiff_fx.quant.digest import digest


@dataclass(frozen=True)
class ShownCalls:
    """Which of the recorded calls observers see: of every timestep as many as hold so many rows, of runs in turn.

    Attributes:
        runs: of the sampler.
        records: of each run.
        rows: how many are to be seen at least; None: all.
        rows_of_call: of one call.
    """

    runs: int
    records: int
    rows: int | None
    rows_of_call: int

    def shows(self, run: int, record: int) -> bool:
        """Whether observers see this record of this run."""
        wanted = self._calls(record)
        first = int(record * GOLDEN % 1 * self.runs)
        return any((first + index * self.runs // wanted) % self.runs == run for index in range(wanted))

    @property
    def calls(self) -> int:
        """Of all runs together."""
        return sum(map(self._calls, range(self.records)))

    def _calls(self, record: int) -> int:
        if self.rows is None:
            return self.runs
        turn = record % self.records
        rows = self.rows * (turn + 1) // self.records - self.rows * turn // self.records
        return min(self.runs, -(-rows // self.rows_of_call))


class InFlight:
    """What observers of a prepared network see of a source's trajectories, while these are drawn.

    Args:
        prepared: a network whose observers have seen nothing yet.
        shown: the calls that they see.
        resume_dir: keep there what they have seen, as `calibrate` does.
    Attributes:
        possible: whether it was done. Where timesteps are none of a training schedule all of them have to be known
            first: `calibrate` is to be shown the records then. None as long as no call has been seen.
    """

    def __init__(self, prepared: nn.Module, shown: ShownCalls, resume_dir: str | os.PathLike[str] | None = None):
        self.shown = shown
        self.possible: bool | None = None
        self._prepared, self._folder = prepared, resume_dir
        self._kept: KeptStatistics | None = None
        self._done = 0

    def begin(self, plan: CollectionPlan, source: Mapping[str, str]) -> None:
        """Take over what the folder holds of these trajectories.

        Args:
            source: digests of what decides what is drawn.
        Raises:
            ArtifactError: the folder belongs to others, or to another network.
        """
        schedule = schedule_of(self._prepared)
        if schedule is None or plan.num_train_timesteps not in (None, schedule.num_train_timesteps):
            self.possible = False
        elif self._folder is not None:
            what = digest([repr(plan), repr(sorted(source.items())), repr(self.shown)])
            self._kept = KeptStatistics(self._prepared, what, self._folder)
            self.possible = True if self._kept.seen else None

    @contextmanager
    def watching(self, unet: nn.Module, run: int, recorder: TrajectoryRecorder) -> Iterator[None]:
        """Inside the block the sampler draws one run with this network; after it, observers have seen their share.

        Args:
            unet: the float network.
            run: its number among all.
            recorder: of this run.
        """
        # Killed before its records were kept: drawn by the same network again, but counted once.
        counted = _snapshot(self._prepared) if self._knows_next() else None
        seen, own = set[int](), unet.forward
        replaced = unet.__dict__.get("forward")

        @wraps(own)
        def forward(*args: Any, **kwargs: Any) -> Any:
            number = recorder.current
            if number is None or not self._sees(run, number, recorder.records[number]):
                return own(*args, **kwargs)
            seen.add(number)
            return self._prepared(*args, **kwargs)

        unet.forward = forward
        try:
            yield
        finally:
            if replaced is None:
                del unet.forward
            else:
                unet.forward = replaced
        if counted is not None:
            _restore(self._prepared, counted)
        self._finish(run, recorder.records, seen)

    def resumed(self, run: int, records: Sequence[Record]) -> None:
        """A run was found on disk: show it, unless the folder holds that too."""
        self._finish(run, records, set())

    def end(self) -> None:
        """All runs of this process are done."""
        if self._kept is not None and self.possible:
            self._kept.finish(self._done)

    def _sees(self, run: int, number: int, record: Record) -> bool:
        """Whether this record is to be shown."""
        if self.possible is None:
            schedule = schedule_of(self._prepared)
            timesteps = timesteps_of(self._prepared, record.arguments)
            self.possible = schedule is not None and is_settled(schedule, timesteps)
        if not self.possible or not self.shown.shows(run, number):
            return False
        check_batch(number, record.arguments, schedule_of(self._prepared), self._prepared)
        return True

    def _knows_next(self) -> bool:
        """Whether the folder holds what observers saw of the run that comes now."""
        return self._kept is not None and self._done < self._kept.seen

    def _finish(self, run: int, records: Sequence[Record], seen: set[int]) -> None:
        """Show of a run what has not been seen."""
        known = self._knows_next()
        for number, record in enumerate(() if known else records):
            if number not in seen and self._sees(run, number, record):
                with torch.no_grad():
                    self._prepared(**record.arguments)
        self._done += 1
        if self._kept is not None and self.possible and not known:
            self._kept.saw(self._done)


def _buffers(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, each in network.named_modules():
        if isinstance(each, Observer):
            yield from each.named_buffers(name)


def _snapshot(network: nn.Module) -> dict[str, Tensor]:
    """What its observers have seen."""
    return {name: buffer.clone() for name, buffer in _buffers(network)}


def _restore(network: nn.Module, counted: Mapping[str, Tensor]) -> None:
    for name, buffer in _buffers(network):
        buffer.copy_(counted[name])
