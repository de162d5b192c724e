"""Interleaved timing: every backend runs in a process of its own, and they take turns, one step each.

Machines drift; steps taken in turn drift together, so their ratio is fair. While one works the others wait for a
line on standard input, and each reports how much processor time it used meanwhile. Thread pools go on spinning for some
milliseconds after their work is done (the OpenMP runtime of torch for five or so), and would take a core from whoever
comes next: a pause between turns lets them fall asleep.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

CHECKOUT = Path(__file__).resolve().parents[1]
GRACE_SECONDS = 10
PAUSE_SECONDS = 0.1


class WorkerError(RuntimeError):
    """A worker that failed: its own words, or the last line it left behind."""


class Stepper(Protocol):
    """Something that runs one step when asked and answers with ``seconds`` and ``idle_cpu_seconds``."""

    name: str

    def step(self) -> dict[str, Any]: ...


@dataclass
class Timings:
    """Steps of one backend in the order they were taken; an error ends them.

    Attributes:
        answers: all that was said of each.
    """

    seconds: list[float] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    idle_cpu_seconds: float = 0.0
    error: str = ""


def interleave(
    workers: Sequence[Stepper],
    rounds: int,
    on_step: Callable[[str], object] = lambda name: None,
    pause: Callable[[], object] = lambda: time.sleep(PAUSE_SECONDS),
) -> dict[str, Timings]:
    """Ask every worker for one step, in turn, `rounds` times; a worker that fails is not asked again.

    `pause` is called before every step.
    """
    timings = {worker.name: Timings() for worker in workers}
    for _ in range(rounds):
        for worker in workers:
            timing = timings[worker.name]
            if timing.error:
                continue
            pause()
            try:
                answer = worker.step()
            except WorkerError as error:
                timing.error = str(error)
                continue
            timing.answers.append(answer)
            timing.seconds.append(answer["seconds"])
            timing.idle_cpu_seconds += answer["idle_cpu_seconds"]
            on_step(worker.name)
    return timings


class Worker:
    """A `benchmarks.worker` process: started, asked for steps, stopped.

    Args:
        program: another module that answers as that one does.
        options: of the program, where it is to answer; by default how often it is to warm up.
    """

    def __init__(
        self,
        model: str,
        name: str,
        cache: Path,
        *,
        threads: int,
        warmup: int = 2,
        program: str = "benchmarks.worker",
        options: Sequence[str] | None = None,
    ):
        self.name = name
        self._command = [sys.executable, "-m", program, model, name, "--cache", str(cache.resolve())]
        self._environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self._options = ["--warmup", str(warmup)] if options is None else options
        self._process: subprocess.Popen[str] | None = None
        self._log: IO[str] | None = None

    def prepare(self) -> None:
        """Write what `start` loads, in a process of its own; raises WorkerError."""
        try:
            self._launch("--prepare")
            self._read()
        finally:
            self.close()

    def start(self) -> dict[str, Any]:
        """Load and warm up; returns ``load_seconds`` and ``first_step_seconds``. Raises WorkerError."""
        self._launch(*self._options)
        return self._read()

    def step(self) -> dict[str, Any]:
        return self._ask("step")

    def stop(self) -> dict[str, int]:
        """End the process; returns ``peak_rss_bytes`` and ``resident_rss_bytes``. Raises WorkerError."""
        try:
            return self._ask("quit")
        finally:
            self.close()

    def close(self) -> None:
        """End the process, whatever it is doing."""
        process, self._process = self._process, None
        if process is None or process.stdin is None or process.stdout is None:
            return
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(timeout=GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        if self._log is not None:
            self._log.close()

    def _launch(self, *arguments: str) -> None:
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [*self._command, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=CHECKOUT,
            env=self._environment,
        )

    def _ask(self, request: str) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # The answer, or its absence, tells why.
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _last_words(self) -> str:
        assert self._process is not None
        assert self._log is not None
        code = self._process.wait()
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        return f"exited with code {code}" + (f": {lines[-1]}" if lines else "")
