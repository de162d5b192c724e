"""Several workers in one process: threads that meet where processes would."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from qdiff_fx.distributed import Workers


class Meeting:
    """What everybody brings, until all have taken it."""

    def __init__(self, count: int):
        self.brought: list[bytes] = [b""] * count
        self.barrier = threading.Barrier(count, timeout=60)


class Seat:
    """One thread's channel."""

    def __init__(self, rank: int, meeting: Meeting):
        self.rank, self.meeting = rank, meeting

    def exchange(self, payload: bytes) -> list[bytes]:
        self.meeting.brought[self.rank] = payload
        self.meeting.barrier.wait()
        found = list(self.meeting.brought)
        self.meeting.barrier.wait()
        return found


def in_threads(count: int, work: Callable[[Workers], Any]) -> list[Any]:
    """What each of them returns, or raises: an error is returned too."""
    meeting = Meeting(count)

    def run(rank: int) -> Any:
        try:
            return work(Workers(rank, count, Seat(rank, meeting)))
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))
