"""Run something in a process of its own, and kill that at a given moment."""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.operations import Operation

SECONDS = 300


class Failed(Exception):
    """What the process says of its own failure."""


@dataclass(frozen=True)
class Outcome:
    """What it returned, or None where it was killed before; and the seconds it took."""

    result: str | None
    seconds: float


def run(work: Callable[[], str], *, kill_after: float | None = None, by: int = signal.SIGKILL) -> Outcome:
    """Fork and do it there. The parent has to have used no threads and no kernels.

    Raises:
        Failed: it raised, or did not end.
    """
    reads, writes = os.pipe()
    start = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if not child:
        os.close(reads)
        _report(work, writes)
    os.close(writes)
    ended = _wait(child, start + (SECONDS if kill_after is None else kill_after))
    if not ended:
        os.kill(child, by)
        if not _wait(child, time.monotonic() + SECONDS):
            os.kill(child, signal.SIGKILL)
            _wait(child, time.monotonic() + SECONDS)
            raise Failed(f"it did not end within {SECONDS} seconds of signal {by}")
    with os.fdopen(reads) as pipe:
        said = pipe.read()
    if said.startswith("error"):
        raise Failed(said)
    return Outcome(said.removeprefix("result ") or None, time.monotonic() - start)


def _wait(child: int, until: float) -> bool:
    while True:
        ended, _ = os.waitpid(child, os.WNOHANG)
        if ended or time.monotonic() > until:
            return bool(ended)
        time.sleep(0.005)


def _report(work: Callable[[], str], writes: int) -> None:
    try:
        said = f"result {work()}"
    except KeyboardInterrupt:
        said = ""
    except BaseException:
        said = f"error {traceback.format_exc()}"
    with os.fdopen(writes, "w") as pipe:
        pipe.write(said)
    os._exit(0)


def killed_and_resumed(operation: Operation, inputs: Path, work: Path, seconds: float, moments: random.Random) -> str:
    """What comes out after one or two kills, by signal 9 or sometimes by an interrupt; raises Failed or as `check`."""
    for _ in range(moments.choice([1, 1, 2])):
        by = moments.choice([signal.SIGKILL] * 4 + [signal.SIGINT])
        run(lambda: operation.run(inputs, work), kill_after=moments.uniform(0, seconds), by=by)
        run(lambda: str(operation.check(inputs, work)))
    result = run(lambda: operation.run(inputs, work)).result
    if result is None:
        raise Failed("it was not killed, and yet there is no result")
    return result
