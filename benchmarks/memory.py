"""The memory of this process."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path


def peak_rss_bytes() -> int:
    """The largest resident set that this process had.

    Where the system tells, not getrusage's: in that counts the parent's, from before this program took its place.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        found = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(found["VmHWM"].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_rss_bytes() -> int | None:
    """The resident set now; None where the system does not tell."""
    statistics = Path("/proc/self/statm")
    if not statistics.is_file():
        return None
    return int(statistics.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
