"""Durations as people read them."""

import pytest

from qdiff_fx.report.amounts import duration, gigabytes, milliseconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (273600, "3 d 4 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_sizes() -> None:
    assert gigabytes(1_250_000_000) == "1.25 GB"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.00041, "0.41 ms"), (0.009995, "10.0 ms"), (0.0123, "12.3 ms"), (1.2041, "1204 ms")]
)
def test_milliseconds_have_three_digits(seconds, text):
    assert milliseconds(seconds) == text
