"""Hears what long work says of how far it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qdiff_fx.progress import Phase


class Listener:
    def __init__(self) -> None:
        self.heard: list[tuple[object, ...]] = []

    @contextmanager
    def phase(self, name: str, total: float | None, unit: str) -> Iterator[Phase]:
        self.heard.append((name, total, unit))
        yield self
        self.heard.append(("end",))

    def advance(self, count: float = 1) -> None:
        self.heard.append(("advance", count))

    def skip(self, count: float = 1) -> None:
        self.heard.append(("skip", count))

    def note(self, line: str) -> None:
        self.heard.append(("note", line))
