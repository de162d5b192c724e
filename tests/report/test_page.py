"""The HTML page stands alone and shows what it was given."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path

from qdiff_fx.report.page import Section, html_page


class Reader(HTMLParser):
    """Collects text, picture sources, and whether every element was closed in order."""

    VOID = frozenset({"meta", "img"})

    def __init__(self, page: str):
        super().__init__()
        self.text: list[str] = []
        self.sources: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_a_page_shows_headings_text_and_cells_as_written() -> None:
    page = html_page("A & B", [Section("One <two>", "text", [["name", "value"], ["a<b", "1"]])])
    reader = Reader(page)
    assert reader.open == []
    for expected in ("A & B", "One <two>", "text", "name", "a<b"):
        assert expected in reader.text


def test_pictures_are_embedded(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(b"\x89PNG")
    (source,) = Reader(html_page("t", [Section("p", picture=picture)])).sources
    assert source == "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()
