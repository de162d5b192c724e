"""Put each fault of `mutants.py` into a copy of the package and run the tests that have to notice it.

    python -m tests.mutants            # all of them
    python -m tests.mutants ranges     # those in files with that in their name

Prints a line for each and exits with 1 when one was not noticed, or when the tests fail without any.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.mutants.mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
TESTS_FAILED = 1  # as pytest exits; anything above is no verdict


def main(words: list[str]) -> int:
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.file for word in words)]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("qdiff_fx", "tests", "benchmarks", "examples"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        if _pytest(copy, dict.fromkeys(test for mutant in chosen for test in mutant.tests.split())):
            print("the tests fail without a mutant")
            return 1
        unnoticed = [mutant for mutant in chosen if not _noticed(copy, mutant)]
    print(f"{len(chosen) - len(unnoticed)} of {len(chosen)} mutants noticed")
    return 1 if unnoticed else 0


def _noticed(copy: Path, mutant: Mutant) -> bool:
    file = copy / "qdiff_fx" / mutant.file
    text = file.read_text()
    file.write_text(text.replace(mutant.before, mutant.after))
    try:
        code = _pytest(copy, mutant.tests.split())
    finally:
        file.write_text(text)
    print(f"{'noticed' if code == TESTS_FAILED else 'NOT NOTICED'}  {mutant.file}: {mutant.before} -> {mutant.after}")
    return code == TESTS_FAILED


def _pytest(copy: Path, tests: Iterable[str]) -> int:
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    return subprocess.run(command, cwd=copy, env=environment, stdout=subprocess.DEVNULL, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
