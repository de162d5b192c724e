"""``30MB``, ``60ms``, ``30min``, ``100%`` and ``all``: amounts as people write them."""

from __future__ import annotations

import re

from qdiff_fx.errors import ConfigError
from qdiff_fx.workflow.job import ALL_ROWS

AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-zµ%]*)\s*")
BYTES = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "min": 60.0, "h": 3600.0}


def parse_bytes(text: str, where: str) -> int:
    """ "30MB" → 30 000 000. Raises ConfigError for another form."""
    return round(_parse(text, BYTES, where))


def parse_seconds(text: str, where: str) -> float:
    """ "60ms" → 0.06. Raises ConfigError for another form."""
    return _parse(text, SECONDS, where)


def parse_share(text: str, where: str) -> float:
    """ "90%" → 0.9. Raises ConfigError for another form."""
    return _parse(text, {"%": 0.01}, where)


def parse_rows(text: str | None, where: str = "--rows") -> int | None:
    """ "100" → 100, "all" → `ALL_ROWS`, None → None. Raises ConfigError for another form."""
    if text is None:
        return None
    if text == "all":
        return ALL_ROWS
    if not text.isdecimal() or not int(text):
        raise ConfigError(f"{text!r} is not a number of rows", where=where, fix='Write a number from 1 on, or "all"')
    return int(text)


def _parse(text: str, units: dict[str, float] | dict[str, int], where: str) -> float:
    match = AMOUNT.fullmatch(text)
    if match is None or match[2] not in units:
        raise ConfigError(
            f"{text!r} is not an amount", where=where, fix=f"Write a number and one of {', '.join(units)}"
        )
    return float(match[1]) * units[match[2]]
