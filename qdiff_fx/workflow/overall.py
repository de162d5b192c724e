"""All phases of a job as one: how much of it is done, how long the rest will take, what each phase took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from qdiff_fx.progress import Phase
from qdiff_fx.workflow.memory import peak_bytes, reset_peak

BELIEVED_AT = 0.25
"""Of a phase: from here on its own pace alone says what the rest of it will take."""
LARGEST_CORRECTION = 4.0


@dataclass(frozen=True)
class Taken:
    """What a phase needed.

    Attributes:
        seconds: of this run alone.
        peak_bytes: the most memory the process held while it lasted.
    """

    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class State:
    """How far everything is.

    Attributes:
        phase: its name.
        done, total: of the phase, in its units; total is None where nobody knows.
        share: of all the time that the job takes, what has passed.
        seconds_left: None while nothing has been estimated.
    """

    phase: str
    done: float
    total: float | None
    unit: str
    share: float
    seconds_left: float | None


class Screen(Protocol):
    """Shows it: a bar, lines, nothing."""

    def begin(self, state: State) -> None: ...

    def update(self, state: State) -> None: ...

    def end(self, state: State, taken: Taken) -> None: ...

    def note(self, line: str) -> None: ...

    def close(self) -> None: ...


class Overall:
    """The progress of a whole job.

    Args:
        screen: what shows it.
        clock: seconds that only grow.
    """

    def __init__(self, screen: Screen, clock: Callable[[], float] = time.monotonic):
        self.taken: dict[str, Taken] = {}
        self._screen, self._clock, self._started = screen, clock, clock()
        self._expected: dict[str, float] = {}
        self._before: dict[str, Taken] = {}
        self._current: _Running | None = None
        self._part = ""

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Phases inside the block are that part's: "vae.decoder: rounding"."""
        before, self._part = self._part, f"{part}: "
        try:
            yield
        finally:
            self._part = before

    def expect(self, seconds: Mapping[str, float]) -> None:
        """What the phases to come are estimated to take, by name."""
        self._expected = dict(seconds)

    @contextmanager
    def phase(self, name: str, total: float | None, unit: str) -> Iterator[Phase]:
        """See `Progress`.

        A phase inside another one belongs to it: of its reports only notes are shown. One of the same name is the same.
        """
        name = self._part + name
        if self._current is not None:
            same = name == self._current.name
            if same:
                self._current.total, self._current.unit = total, unit
            yield self._current if same else _Inside(self._current)
            return
        reset_peak()
        self._before = dict(self.taken)
        self._current = running = _Running(self, name, total, unit, self._clock())
        self._screen.begin(self.state())
        try:
            yield running
            self._finish(running)
            self._screen.end(self.state(), self.taken[name])
        finally:
            self._finish(running)
            self._current = None

    def _finish(self, running: _Running) -> None:
        before = self._before.get(running.name, Taken(0.0, 0))
        seconds = before.seconds + self._clock() - running.started
        self.taken[running.name] = Taken(seconds, max(before.peak_bytes, peak_bytes()))

    def state(self) -> State:
        """As of now."""
        running = self._current
        passed, left = self.passed(), self.seconds_left()
        share = 0.0 if left is None or passed + left <= 0 else passed / (passed + left)
        if running is None:
            return State("", 0, None, "", share, left)
        return State(running.name, running.done, running.total, running.unit, share, left)

    def passed(self) -> float:
        """Seconds since it began."""
        return self._clock() - self._started

    def seconds_left(self) -> float | None:
        """By the pace of the current phase, and the estimates of those to come, corrected by what has been so far."""
        if not self._expected:
            return None
        running = self._current
        begun = {*self.taken, *([running.name] if running else [])}
        later = sum(seconds for name, seconds in self._expected.items() if name not in begun)
        within = 0.0 if running is None else running.seconds_left(self._expected.get(running.name, 0.0), self._clock())
        return within + later * self._correction()

    def _correction(self) -> float:
        """How much longer than estimated the finished phases took, all of them together."""
        known = [name for name in self.taken if name in self._expected]
        estimated = sum(self._expected[name] for name in known)
        if estimated <= 0:
            return 1.0
        ratio = sum(self.taken[name].seconds for name in known) / estimated
        return min(max(ratio, 1 / LARGEST_CORRECTION), LARGEST_CORRECTION)

    def _advanced(self) -> None:
        self._screen.update(self.state())

    def note(self, line: str) -> None:
        """A line of its own."""
        self._screen.note(line)

    def __enter__(self) -> Overall:
        return self

    def __exit__(self, *error: object) -> None:
        self._screen.close()


class _Running:
    def __init__(self, overall: Overall, name: str, total: float | None, unit: str, started: float):
        self.name, self.total, self.unit, self.started = name, total, unit, started
        self.done, self.skipped = 0.0, 0.0
        self._overall = overall

    def advance(self, count: float = 1) -> None:
        self.done += count
        self._overall._advanced()

    def skip(self, count: float = 1) -> None:
        self.skipped += count
        self.advance(count)

    def note(self, line: str) -> None:
        self._overall.note(line)

    def seconds_left(self, estimate: float, now: float) -> float:
        passed = now - self.started
        if not self.total:
            return max(estimate - passed, 0.0)
        done = min((self.done - self.skipped) / max(self.total - self.skipped, 1e-9), 1.0)
        rest = max(1 - self.done / self.total, 0.0)
        whole = estimate
        if done > 0:
            # The same work at the pace so far, were nothing skipped.
            pace = passed / (self.done - self.skipped) * self.total
            belief = min(done / BELIEVED_AT, 1.0) ** 2  # the first steps may wait for what all of them need
            whole = belief * pace + (1 - belief) * estimate
        return whole * rest


class _Inside:
    """A phase within another one."""

    def __init__(self, outer: _Running):
        self._outer = outer

    def advance(self, count: float = 1) -> None:
        pass

    def skip(self, count: float = 1) -> None:
        pass

    def note(self, line: str) -> None:
        self._outer.note(line)
