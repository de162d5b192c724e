"""How much memory the process holds, and the most it has held."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def held_bytes() -> int:
    """Resident now."""
    return _of_status("VmRSS") or _largest_ever()


def peak_bytes() -> int:
    """The most that was resident since the last `reset_peak`; since the process began where that cannot be reset."""
    return _of_status("VmHWM") or _largest_ever()


def reset_peak() -> None:
    """Forget the peak, where the system can (Linux)."""
    with suppress(OSError):
        _RESET.write_text("5")


def _of_status(field: str) -> int:
    with suppress(OSError, ValueError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return 0


def _largest_ever() -> int:
    if sys.platform == "win32":
        return 0
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024
