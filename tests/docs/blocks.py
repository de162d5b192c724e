"""The fenced blocks of README and docs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"# \w+\.py\n")


@dataclass(frozen=True)
class Block:
    """One of them; `number` counts those of its page."""

    page: str
    number: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}-{self.number}"

    @property
    def is_a_file(self) -> bool:
        """Of a recipe: it begins with the name of the file that it is."""
        return FILE.match(self.text) is not None


def blocks() -> list[Block]:
    return [
        Block(page.name, number, *found)
        for page in PAGES
        for number, found in enumerate(FENCED.findall(page.read_text()))
    ]


def inline_code() -> list[tuple[str, str]]:
    """Page and text of all code within sentences and tables."""
    texts = [(page.name, FENCED.sub("", page.read_text())) for page in PAGES]
    return [(name, code) for name, text in texts for code in INLINE.findall(text)]
