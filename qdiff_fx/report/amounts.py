"""Times and sizes as people read them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """``0.4 s``, ``41 s``, ``3 min 20 s``, ``2 h 5 min``, ``3 d 4 h``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, name, smaller, smaller_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            rest = whole % unit // smaller
            return f"{whole // unit} {name}" + (f" {rest} {smaller_name}" if rest else "")
    return f"{whole} s"


def milliseconds(seconds: float) -> str:
    """``0.41 ms``, ``12.3 ms``, ``1204 ms``."""
    value = seconds * 1e3
    return f"{value:.2f} ms" if value < 9.995 else f"{value:.1f} ms" if value < 99.95 else f"{value:.0f} ms"


def gigabytes(size: float) -> str:
    """``1.25 GB``, decimal; ``0.08 GB`` where it is little."""
    return f"{size / 1e9:.2f} GB"
