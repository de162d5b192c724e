"""The page about a network holds what is known, escaped, and refers to nothing outside."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import pytest
import torch

from qdiff_fx.report.network_page import LayerRow, NetworkReport, network_page
from qdiff_fx.report.svg import curve, sparkline

ROWS = [
    LayerRow("a<b>", "conv", "4/8", "vnni", 31.25, 0.0012, [(-1.0, 2.0), (-3.0, 4.0)]),
    LayerRow("exact", "linear", "8/8", "vnni", math.inf, 0.5, [(0.0, 1.0)]),
    LayerRow("in.float", "conv", "", "torch", remark="grouped & small"),
]


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[list[str]] = []
        self.open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.open = "td"
            self.cells[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.open = ""

    def handle_data(self, data: str) -> None:
        if self.cells and self.cells[-1] and self.open == "td":
            self.cells[-1][-1] += data.strip()


def page() -> str:
    pictures = {"float": torch.rand(2, 3, 8, 8), "W4A8": torch.rand(2, 1, 8, 8).expand(-1, 3, -1, -1)}
    eps = {"native": [30.0, math.inf, 20.0]}
    return network_page(NetworkReport("<net>", {"saved": "1 MB & more"}, ROWS, [900.0, 500.0, 1.0], eps, pictures))


def test_everything_is_there_and_escaped() -> None:
    read = Page(page())
    header, *rows = [row for row in read.cells if len(row) == 8]
    assert header[:4] == ["layer", "kind", "W/A", "kernel"]
    assert [row[0] for row in rows] == ["a<b>", "exact", "in.float"]
    assert [row[4] for row in rows] == ["31.2", "exact", ""]
    assert [row[5] for row in rows] == ["1.20 ms", "500 ms", ""]
    assert [row[2] for row in rows] == ["4/8", "8/8", "float"]
    assert rows[2][7] == "grouped & small"
    assert "<net>" not in page().replace("&lt;net&gt;", "")
    assert "1 MB &amp; more" in page()


def test_it_refers_to_no_other_file() -> None:
    read = Page(page())
    sources = [value for _, attributes in read.tags for name, value in attributes.items() if name in ("src", "href")]
    assert len(sources) == 4  # two pairs of pictures
    assert all(value is not None and value.startswith("data:image/png;base64,") for value in sources)
    assert not re.search(r"https?://|@import|url\(", page())


def test_a_network_of_which_little_is_known() -> None:
    text = network_page(NetworkReport("net", {}, []))
    assert "<table" not in text
    assert "<svg" not in text
    assert "<img" not in text


def test_curves_leave_gaps_where_a_value_is_not_finite() -> None:
    drawn = curve([3, 2, 1], {"a": [1.0, math.inf, 2.0], "b": [5.0, 5.0, 5.0]}, "t", "dB")
    first, second = re.findall(r'points="([^"]*)"', drawn)
    assert (len(first.split()), len(second.split())) == (2, 3)
    assert len({point.split(",")[1] for point in second.split()}) == 1
    assert curve([1], {"a": [math.nan]}, "t", "dB") == ""


@pytest.mark.parametrize("ranges", [[(0.0, 0.0)], [(-1.0, 1.0)], [(-1.0, 1.0), (-2.0, 0.5), (0.0, 0.0)]])
def test_ranges_stay_within_their_drawing(ranges: list[tuple[float, float]]) -> None:
    (points,) = re.findall(r'polygon points="([^"]*)"', sparkline(ranges))
    numbers = [tuple(map(float, point.split(","))) for point in points.split()]
    assert all(0 <= x <= 120 and 0 <= y <= 26 for x, y in numbers)
    assert f"{min(low for low, _ in ranges):.3g} to" in sparkline(ranges)
