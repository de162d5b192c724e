"""One bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

from qdiff_fx.report.amounts import duration
from qdiff_fx.workflow.overall import Screen, State, Taken

SECONDS_APART, SHARE_APART, LEAST_APART = 30.0, 0.1, 3.0
"""Between two lines: so many seconds, or such a share of the phase that took a few."""


def make_screen(say: Callable[[str], None], *, interactive: bool) -> Screen:
    """What suits where the words go."""
    return BarScreen() if interactive else LineScreen(say)


class SilentScreen:
    """Shows nothing."""

    def begin(self, state: State) -> None:
        pass

    def update(self, state: State) -> None:
        pass

    def end(self, state: State, taken: Taken) -> None:
        pass

    def note(self, line: str) -> None:
        pass

    def close(self) -> None:
        pass


class LineScreen:
    """A line when a phase begins and ends, and now and then between.

    Args:
        say: prints a line.
        clock: seconds that only grow.
    """

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic):
        self._say, self._clock = say, clock
        self._last, self._share = clock(), 0.0

    def begin(self, state: State) -> None:
        self._last, self._share = self._clock(), 0.0
        self._say(f"{state.phase} …")

    def update(self, state: State) -> None:
        now, share = self._clock(), _share(state)
        apart = now - self._last
        if apart >= SECONDS_APART or (apart >= LEAST_APART and share - self._share > SHARE_APART - 1e-9):
            self._last, self._share = now, share
            self._say(_line(state, f" {state.share:.0%} of everything,"))

    def end(self, state: State, taken: Taken) -> None:
        self._say(f"{state.phase}: took {duration(taken.seconds)}")

    def note(self, line: str) -> None:
        self._say(line)

    def close(self) -> None:
        pass


class BarScreen:
    """A bar of tqdm over everything, described by the phase."""

    def __init__(self) -> None:
        self._bar = tqdm(total=1000, bar_format="{percentage:3.0f}%|{bar:20}| {desc}", leave=False)
        self._drawn = 0.0

    def begin(self, state: State) -> None:
        self.update(state)

    def update(self, state: State) -> None:
        self._bar.n = round(1000 * state.share)
        self._bar.set_description_str(_line(state, ""), refresh=False)
        now = time.monotonic()
        if now - self._drawn >= self._bar.mininterval or state.done == 0:
            self._drawn = now
            self._bar.refresh()

    def end(self, state: State, taken: Taken) -> None:
        self.note(f"{state.phase}: took {duration(taken.seconds)}")
        self._bar.clear()  # what is printed between two phases gets lines of its own

    def note(self, line: str) -> None:
        tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()


def _share(state: State) -> float:
    return state.done / state.total if state.total else 0.0


def _line(state: State, share: str) -> str:
    parts = [state.phase]
    if state.total:
        plural = "" if state.total == 1 else "es" if state.unit.endswith("ch") else "s"
        parts.append(f"{state.done:.0f}/{state.total:.0f} {state.unit}{plural}")
    line = " ".join(parts)
    if state.seconds_left is None:
        return line
    return f"{line},{share} about {duration(state.seconds_left)} left"
