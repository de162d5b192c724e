"""What is installed, and what a source distribution holds."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_data_that_the_package_reads_is_installed() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["qdiff_fx.bundled"]
    folder = ROOT / "qdiff_fx" / "bundled"
    shipped = {path for pattern in patterns for path in folder.glob(pattern)}
    assert {path for path in folder.rglob("*") if path.suffix not in (".py", ".pyc") and path.is_file()} == shipped


def test_extras_that_errors_name_are_there() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "qdiff_fx").rglob("*.py"))
    named = set(re.findall(r"qdiff_fx\[(\w+)\]", sources))
    assert named == {"onnx", "pipelines"}
    assert named <= set(PROJECT["project"]["optional-dependencies"])


def test_a_source_distribution_has_tests_and_docs() -> None:
    text = (ROOT / "MANIFEST.in").read_text()
    for folder in ("tests", "docs", "examples", "benchmarks"):
        assert (ROOT / folder).is_dir()
        assert f"graft {folder}\n" in text
