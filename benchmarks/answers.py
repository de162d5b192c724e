"""What a worker says to whoever started it: JSON lines on its original standard output."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


def claim_stdout() -> TextIO:
    """The original standard output for ourselves; everybody else's prints go to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def answer(answers: TextIO, **fields: Any) -> None:
    """One line."""
    answers.write(json.dumps(fields) + "\n")
    answers.flush()


@contextmanager
def telling_errors(answers: TextIO) -> Iterator[None]:
    """An exception is answered in one line, then raised."""
    try:
        yield
    except Exception as error:
        answer(answers, error=f"{type(error).__name__}: {error}")
        raise
