"""That the package is typed reaches those who install it, and what is left unchecked says why."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SUPPRESSION = re.compile(r"#\s*type:\s*ignore(?P<rest>.*)")
CODE_AND_REASON = re.compile(r"\[[a-z-]+(, [a-z-]+)*\]  # \w")


def test_the_marker_of_a_typed_package_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["qdiff_fx"]
    shipped = {path.name for pattern in patterns for path in (ROOT / "qdiff_fx").glob(pattern)}
    assert "py.typed" in shipped


def test_a_suppressed_type_error_has_a_code_and_a_reason():
    for file in sorted((ROOT / "qdiff_fx").rglob("*.py")):
        for line in file.read_text().splitlines():
            found = SUPPRESSION.search(line)
            assert not found or CODE_AND_REASON.match(found["rest"]), f"{file.name}: {line.strip()}"
