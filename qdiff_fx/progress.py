"""How long work says how far it is: to a bar of its own, to somebody who shows all phases in one, or to nobody."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from tqdm import tqdm


class Phase(Protocol):
    """A part of the work that is going on."""

    def advance(self, count: float = 1) -> None:
        """So many more of the phase's units are done."""

    def skip(self, count: float = 1) -> None:
        """So many were done by an earlier run: they count as done, and say nothing about speed."""

    def note(self, line: str) -> None:
        """Something worth a line of its own."""


class Progress(Protocol):
    """Whoever shows several phases together."""

    def phase(self, name: str, total: float | None, unit: str) -> AbstractContextManager[Phase]:
        """Begin one; it ends with the ``with``.

        Args:
            name: what is being done, "rounding".
            total: how many units of work it has; the sum of what `advance` and `skip` will be given. None: unknown.
            unit: of what, in the singular, "row".
        """


@contextmanager
def phase(progress: bool | Progress, name: str, total: float | None, unit: str) -> Iterator[Phase]:
    """What a function with an argument ``progress`` reports to: its own bar for True, nothing for False.

    >>> with phase(False, "counting", 3, "number") as counting:
    ...     for number in range(3):
    ...         counting.advance()
    """
    if progress is False:
        yield Silent()
    elif progress is True:
        with tqdm(total=total, desc=name, unit=unit) as bar:
            yield Bar(bar)
    else:
        with progress.phase(name, total, unit) as shown:
            yield shown


class Silent:
    """Shows nothing."""

    def advance(self, count: float = 1) -> None:
        pass

    def skip(self, count: float = 1) -> None:
        pass

    def note(self, line: str) -> None:
        pass


class Bar:
    """One bar on stderr, and lines above it."""

    def __init__(self, bar: tqdm[None]):
        self._bar = bar

    def advance(self, count: float = 1) -> None:
        self._bar.update(count)

    def skip(self, count: float = 1) -> None:
        # What tqdm takes for there from the beginning is no part of its rate.
        self._bar.initial += count
        self._bar.last_print_n += count
        self._bar.n += count
        self._bar.refresh()

    def note(self, line: str) -> None:
        tqdm.write(line, file=sys.stderr)
