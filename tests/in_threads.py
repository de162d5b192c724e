"""Several workers in one process: threads that meet where processes would."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from qdiff_fx.distributed import Workers


class Meeting:
    """What everybody brings, until all have taken it."""

    def __init__(self, count: int):
        self.brought: list[Any] = [b""] * count
        self.barrier = threading.Barrier(count, timeout=60)
        self.left: tuple[int, str] | None = None
        self.turn = threading.Lock()  # torch's fake tensors are not for several threads: one runs until it waits

    def wait(self) -> None:
        self.turn.release()
        try:
            self.barrier.wait()
        finally:
            self.turn.acquire()


class Seat:
    """One thread's channel."""

    def __init__(self, rank: int, meeting: Meeting):
        self.rank, self.meeting = rank, meeting

    def exchange(self, payload: Any) -> list[Any]:
        self.meeting.brought[self.rank] = payload
        self.meeting.wait()
        found = list(self.meeting.brought)
        self.meeting.wait()
        return found

    def leave(self, rank: int, text: str) -> None:
        self.meeting.left = self.meeting.left or (rank, text)
        self.meeting.barrier.abort()

    def left(self) -> tuple[int, str] | None:
        return self.meeting.left

    def add_up(self, integers: torch.Tensor, owner: int) -> None:
        brought = self.exchange(integers.clone())
        integers.copy_(sum(brought)) if self.rank == owner else integers.zero_()


def in_threads(count: int, work: Callable[[Workers], Any]) -> list[Any]:
    """What each of them returns, or raises: an error is returned too."""
    meeting = Meeting(count)

    def run(rank: int) -> Any:
        with meeting.turn:
            try:
                return work(Workers(rank, count, Seat(rank, meeting)))
            except Exception as error:
                return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))
