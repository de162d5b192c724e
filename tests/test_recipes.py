"""The recipes of docs/adding-*.md, followed literally: files written to an empty folder, tests run there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A block that begins with the name of a file is that file.
BLOCK = re.compile(r"```python\n# (?P<name>\w+\.py)\n(?P<code>.*?)```", re.DOTALL)

RECIPES = ("adding-a-pass", "adding-an-observer", "adding-a-backend")
SLOW = {"adding-a-pass", "adding-a-backend"}


@pytest.mark.parametrize("recipe", [pytest.param(each, marks=[pytest.mark.slow] * (each in SLOW)) for each in RECIPES])
def test_a_recipe_works_as_it_is_written(recipe, tmp_path):
    files = {found["name"]: found["code"] for found in BLOCK.finditer((ROOT / f"docs/{recipe}.md").read_text())}
    tests = [name for name in files if name.startswith("test_")]
    assert tests
    assert {name.removeprefix("test_") for name in tests} == set(files) - set(tests)  # one new file and its test
    for name, code in files.items():
        (tmp_path / name).write_text(code)
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", ".", *tests],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
