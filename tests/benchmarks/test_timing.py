"""Turns are taken in order, one step each, and a worker that fails stops being asked."""

import io
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.answers import serve, telling_errors
from benchmarks.timing import Worker, WorkerError, interleave
from benchmarks.worker import stepping


class FakeStepper:
    def __init__(self, name: str, journal: list[str], fails_at: int | None = None):
        self.name, self.journal, self.fails_at, self.taken = name, journal, fails_at, 0

    def step(self) -> dict[str, float]:
        if self.taken == self.fails_at:
            raise WorkerError("out of memory")
        self.taken += 1
        self.journal.append(self.name)
        return {"seconds": float(self.taken), "idle_cpu_seconds": 0.5}


def test_workers_take_turns() -> None:
    journal: list[str] = []
    timings = interleave([FakeStepper(name, journal) for name in "abc"], rounds=3)
    assert journal == list("abcabcabc")
    assert {name: timing.seconds for name, timing in timings.items()} == dict.fromkeys("abc", [1.0, 2.0, 3.0])
    assert timings["a"].idle_cpu_seconds == 1.5


def test_a_failing_worker_is_left_out_and_the_others_go_on() -> None:
    journal: list[str] = []
    workers = [FakeStepper("a", journal), FakeStepper("b", journal, fails_at=1)]
    timings = interleave(workers, rounds=3)
    assert journal == ["a", "b", "a", "a"]
    assert timings["b"].error == "out of memory"
    assert not timings["a"].error


def test_every_step_is_announced() -> None:
    announced: list[str] = []
    interleave([FakeStepper("a", []), FakeStepper("b", [])], rounds=2, on_step=announced.append)
    assert announced == ["a", "b", "a", "b"]


def test_a_worker_answers_each_request_and_its_memory_last() -> None:
    calls: list[int] = []
    answers = io.StringIO()
    step = stepping(lambda sample: calls.append(1) or sample, {"sample": torch.ones(1)})
    serve(step, io.StringIO("step\nstep\nquit\n"), answers)
    first, second, memory = map(json.loads, answers.getvalue().splitlines())
    assert len(calls) == 2
    assert set(first) == set(second) == {"seconds", "idle_cpu_seconds"}
    assert memory["peak_rss_bytes"] > 1_000_000


def test_a_worker_stops_when_nobody_asks_any_more() -> None:
    answers = io.StringIO()
    serve(stepping(lambda: torch.ones(1), {}), io.StringIO(""), answers)
    assert set(json.loads(answers.getvalue())) == {"peak_rss_bytes", "resident_rss_bytes"}


@pytest.mark.slow
def test_a_real_process_loads_steps_and_stops(tmp_path: Path) -> None:
    worker = Worker("sd-tiny", "torch-fp32", tmp_path, threads=1, warmup=1)
    try:
        assert set(worker.start()) == {"load_seconds", "first_step_seconds"}
        assert worker.step()["seconds"] > 0
        assert worker.stop()["peak_rss_bytes"] > 1_000_000
    finally:
        worker.close()


def test_an_error_is_answered_in_one_line_and_raised() -> None:
    answers = io.StringIO()
    with pytest.raises(ValueError, match="no such"), telling_errors(answers):
        raise ValueError("no such\nbackend")
    assert json.loads(answers.getvalue()) == {"error": "ValueError: no such\nbackend"}


class ScriptedWorker(Worker):
    """A worker whose process is a one-line program."""

    def __init__(self, program: str):
        super().__init__("model", "name", Path(), threads=1)
        self._command = [sys.executable, "-c", program]


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ('print(\'{"error": "ValueError: unknown backend"}\')', "ValueError: unknown backend"),
        ("import sys; sys.exit('first\\nlast words')", "exited with code 1: last words"),
        ("import os; os.abort()", "exited with code -6"),
    ],
)
def test_a_process_that_fails_says_why(program: str, reason: str) -> None:
    worker = ScriptedWorker(program)
    with pytest.raises(WorkerError, match=re.escape(reason)):
        worker.prepare()


def test_a_process_that_dies_between_steps_says_so() -> None:
    worker = ScriptedWorker("print('{}')")
    worker.start()
    with pytest.raises(WorkerError, match="exited with code 0"):
        worker.step()
    worker.close()
