"""The memory of a process is its own, however large the one that started it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.memory import peak_rss_bytes, resident_rss_bytes
from benchmarks.timing import CHECKOUT


def test_what_was_taken_counts() -> None:
    before = peak_rss_bytes()
    assert 1.05 * before > (resident_rss_bytes() or 1) > 0  # the system counts roughly
    taken = b"1" * before
    assert peak_rss_bytes() > before
    assert len(taken) == before


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the system does not tell")
def test_that_of_the_parent_does_not() -> None:
    taken = bytearray(b"1") * (300 << 20)
    command = [sys.executable, "-c", "from benchmarks.memory import peak_rss_bytes; print(peak_rss_bytes())"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200 << 20 < len(taken)
