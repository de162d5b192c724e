"""The page about a network in a browser: its table sorts, its pictures are compared."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image

from qdiff_fx.report.network_page import LayerRow, NetworkReport, network_page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HEADLESS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--window-size=1200,900")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="there is no Chromium; `make test-browser` installs it"),
]


@pytest.fixture(scope="module")
def page() -> str:
    rows = [
        LayerRow("second", "conv", "4/8", "k", 20.0, 0.002),
        LayerRow("first", "conv", "8/8", "k", 9.5, 0.010),
        LayerRow("third", "linear", "", "torch", None, None),
    ]
    white, black = torch.ones(1, 3, 16, 16), -torch.ones(1, 3, 16, 16)
    pictures = {"float": white, "W4A8": black}
    return network_page(NetworkReport("net", {}, rows, [2.0, 1.0], {"native": [30.0, 20.0]}, pictures))


def run(folder: Path, page: str, script: str, *options: str) -> str:
    """The document after a script has run in it."""
    file = folder / "page.html"
    file.write_text(page.replace("</body>", f"<script>{script}</script></body>"))
    assert BROWSER is not None
    profile = f"--user-data-dir={folder / 'profile'}"
    done = subprocess.run(
        [BROWSER, *HEADLESS, profile, *options, file.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


def paths(document: str) -> list[str]:
    body = document.split("<tbody>")[1].split("</tbody>")[0]
    return re.findall(r"<tr><td>([^<]*)</td>", body)


@pytest.mark.parametrize(
    ("column", "clicks", "expected"),
    [
        (0, 1, ["first", "second", "third"]),
        (0, 2, ["third", "second", "first"]),
        (4, 1, ["first", "second", "third"]),  # what is unknown comes last
        (4, 2, ["second", "first", "third"]),
        (5, 1, ["second", "first", "third"]),  # as numbers: 2 ms before 10
    ],
)
def test_a_click_on_a_heading_sorts(page: str, tmp_path: Path, column: int, clicks: int, expected: list[str]) -> None:
    script = f"for (let i = 0; i < {clicks}; i++) document.querySelectorAll('th button')[{column}].click();"
    document = run(tmp_path, page, script, "--dump-dom")
    assert paths(document) == expected
    assert document.count("aria-sort") - page.count("aria-sort") == 1


@pytest.mark.parametrize(("share", "left", "right"), [(0, 0, 0), (50, 255, 0), (100, 255, 255)])
def test_the_handle_shows_more_of_either_picture(page: str, tmp_path: Path, share: int, left: int, right: int) -> None:
    script = f"const h = document.querySelector('.pair input'); h.value = {share}; h.dispatchEvent(new Event('input'));"
    # Alone at the corner, so that pixels are where they are known to be.
    script += "document.body.replaceChildren(document.querySelector('.pair')); document.body.style.margin = 0;"
    run(tmp_path, page, script, f"--screenshot={tmp_path / 'shot.png'}", "--hide-scrollbars")
    shot = Image.open(tmp_path / "shot.png").convert("L")
    offset = max(0, (shot.width - 1216) // 2)
    assert abs(shot.getpixel((offset + 40, 100)) - left) < 8
    assert abs(shot.getpixel((offset + 216, 100)) - right) < 8
