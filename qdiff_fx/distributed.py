"""Processes that share one job: who one is among them, and what all of them have come to.

They are started by ``torchrun``, on one machine or many, and talk through gloo. Every one runs the same program on the
same data and settings; what is shared out is told by numbers, so that nobody has to be asked what to do.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from qdiff_fx.errors import QDiffError, WorkerError

Item = TypeVar("Item")
PATIENCE = timedelta(days=30)
"""What one process does alone, the others wait for; of one that died they hear at once."""
TO_MEET = timedelta(minutes=10)
PIECE = 1 << 28
"""Bytes that are sent at a time."""
ERROR = "qdiff_fx error"
AGAIN = "See what ended it, memory perhaps; run again with the same work folder, it goes on from what is finished"


class Channel(Protocol):
    """Brings what every process sends to all of them."""

    def exchange(self, payload: bytes) -> list[bytes]:
        """Called by all; what each of them gave, in order."""

    def add_up(self, integers: Tensor, owner: int) -> None:
        """Called by all; the owner's becomes the sum, in place, and what the others' becomes nobody knows."""

    def leave(self, rank: int, text: str) -> None:
        """This one goes, for a reason. All others' calls, those too that they are waiting in, raise a RuntimeError."""

    def left(self) -> tuple[int, str] | None:
        """The first one who went, and its reason; None where nobody gave any."""


class Workers:
    """The processes that share a job.

    Args:
        rank: which of them this is; number 0 does what is not shared out, and speaks for all.
        count: how many there are.
        channel: None where there is one.
    """

    def __init__(self, rank: int = 0, count: int = 1, channel: Channel | None = None):
        self.rank, self.count, self._channel = rank, count, channel
        self._failed = False

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part: every count-th."""
        return items[self.rank :: self.count]

    def stretch(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part in one piece."""
        return items[len(items) * self.rank // self.count : len(items) * (self.rank + 1) // self.count]

    def barrier(self) -> None:
        """Wait until all have come here. Raises WorkerError where one has failed instead."""
        self._exchange(b"")

    def gather(self, report: Any, tensors: Mapping[str, Tensor] | None = None) -> list[tuple[Any, dict[str, Tensor]]]:
        """What every process has come to, in order of their ranks, bit for bit.

        Args:
            report: anything JSON can hold.
            tensors: by name.
        Raises:
            WorkerError: one of them has failed, or is gone.
        """
        # Copies, as tensors that share memory cannot be written.
        body = to_bytes({name: each.detach().cpu().clone().contiguous() for name, each in (tensors or {}).items()})
        head = json.dumps(report).encode()
        found = self._exchange(len(head).to_bytes(8, "little") + head + body)
        return [_taken_apart(each) for each in found]

    def agreed(self, report: Any) -> Any:
        """What the leading process says, for all."""
        return self.gather(report if self.leads else None)[0][0]

    def add_up(self, integers: Tensor, owner: int) -> None:
        """The sum of all processes' tensors of one shape, in place, on the owner; elsewhere what it holds is lost.

        Integers only, whose sum is the same in every order.

        Raises:
            WorkerError: one of them is gone.
        """
        if integers.is_floating_point():
            raise TypeError(f"only integers add up to the same in every order, not {integers.dtype}")
        if self._channel is not None:
            with self._in_words():
                self._channel.add_up(integers, owner)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Tell the others of an error in the block, so that none of them waits for this one."""
        try:
            yield
        except Exception as error:
            if self._channel is not None and not self._failed:
                self._failed = True
                text = str(error) if isinstance(error, QDiffError) else f"{type(error).__name__}: {error}"
                self._channel.leave(self.rank, text)
            raise

    def gone(self, cause: str) -> WorkerError:
        """What to raise when another process does not answer any more."""
        self._failed = True
        left = None if self._channel is None else self._channel.left()
        if left is not None:
            return WorkerError(left[1], where=f"process {left[0]} of {self.count}")
        return WorkerError(f"one of the {self.count} processes is gone ({cause})", where="distributed", fix=AGAIN)

    def _exchange(self, payload: bytes) -> list[bytes]:
        if self._channel is None:
            return [payload]
        with self._in_words():
            return self._channel.exchange(payload)

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise self.gone(_cause(error)) from error


ALONE = Workers()


class Gloo:
    """The channel between processes that torchrun started.

    Args:
        store: what they found one another through; torchrun keeps it as long as any of them lives.
    """

    def __init__(self, store: Store):
        self._store = store

    def exchange(self, payload: bytes) -> list[bytes]:
        count = dist.get_world_size()
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(count)]
        dist.all_gather(sizes, torch.tensor([len(payload)]))
        return [self._broadcast(payload, rank, int(size)) for rank, size in enumerate(sizes)]

    def _broadcast(self, payload: bytes, rank: int, size: int) -> bytes:
        mine = rank == dist.get_rank()
        given = bytearray(payload) if mine else bytearray(size)
        buffer = torch.frombuffer(given, dtype=torch.uint8) if size else torch.empty(0, dtype=torch.uint8)
        for piece in buffer.split(PIECE):
            dist.broadcast(piece, rank)
        return bytes(given)

    def add_up(self, integers: Tensor, owner: int) -> None:
        for piece in integers.view(-1).split(PIECE // integers.element_size()):
            dist.reduce(piece, owner)

    def leave(self, rank: int, text: str) -> None:
        with suppress(RuntimeError):  # of a store that is gone too
            self._store.compare_set(ERROR, "", json.dumps([rank, text]))
        # The others' sockets close.
        dist.destroy_process_group()

    def left(self) -> tuple[int, str] | None:
        with suppress(RuntimeError):
            if self._store.check([ERROR]):
                rank, text = json.loads(self._store.get(ERROR))
                return rank, text
        return None


@contextmanager
def started_together() -> Iterator[Workers]:
    """The processes that torchrun started together with this one; just this one otherwise."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count < 2 or "RANK" not in os.environ:
        yield ALONE
        return
    store, rank, count = next(rendezvous("env://", timeout=TO_MEET))
    dist.init_process_group("gloo", store=PrefixStore("gloo", store), rank=rank, world_size=count, timeout=PATIENCE)
    workers = Workers(rank, count, Gloo(store))

    def ended(number: int, frame: object) -> None:
        """torchrun ends the others when one has died."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise workers.gone("this one was ended")

    before = signal.signal(signal.SIGTERM, ended)
    try:
        yield workers
    finally:
        signal.signal(signal.SIGTERM, before)
        if dist.is_initialized():
            dist.destroy_process_group()


def _cause(error: RuntimeError) -> str:
    """gloo's words: without the place in its sources before them, and the advice behind."""
    text = str(error) or type(error).__name__
    return re.sub(r"^\[[^\]]*\]\s*", "", text.splitlines()[0]).split(". ")[0][:200]


def _taken_apart(payload: bytes) -> tuple[Any, dict[str, Tensor]]:
    start = 8 + int.from_bytes(payload[:8], "little")
    return json.loads(payload[8:start]), from_bytes(payload[start:])
