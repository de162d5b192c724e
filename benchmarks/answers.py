"""What a worker says to whoever started it: JSON lines on its original standard output."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from benchmarks.memory import peak_rss_bytes, resident_rss_bytes


def claim_stdout() -> TextIO:
    """The original standard output for ourselves; everybody else's prints go to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def answer(answers: TextIO, **fields: Any) -> None:
    """One line."""
    answers.write(json.dumps(fields) + "\n")
    answers.flush()


def serve(step: Callable[[], dict[str, Any]], requests: TextIO, answers: TextIO) -> None:
    """Answer every request with what a step says, until the last, then how much memory it took.

    Between two of them this process only waits.
    """
    idle_since = time.process_time()
    for request in requests:
        if request.strip() != "step":
            break
        idle = time.process_time() - idle_since
        answer(answers, **step(), idle_cpu_seconds=idle)
        idle_since = time.process_time()
    answer(answers, peak_rss_bytes=peak_rss_bytes(), resident_rss_bytes=resident_rss_bytes())


@contextmanager
def telling_errors(answers: TextIO) -> Iterator[None]:
    """An exception is answered in one line, then raised."""
    try:
        yield
    except Exception as error:
        answer(answers, error=f"{type(error).__name__}: {error}")
        raise
