from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from tests.versions.combinations import EXTRAS, Combination, combinations

ROOT = Path(__file__).parents[2]
SMOKE = Path(__file__).with_name("smoke.py")
EXAMPLE = ROOT / "examples" / "quantize_pipeline.py"


def main(
    wheel: Annotated[Path, typer.Argument(help="What is installed.", exists=True)],
    only: Annotated[list[str] | None, typer.Option(help="Combinations of this name.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Keep the environments here, and take those that are.")] = None,
) -> None:
    """Try each combination; exits with 1 where one does not work."""
    known = {each.name: each for each in combinations()}
    if unknown := set(only or ()) - set(known):
        raise typer.BadParameter(f"unknown combinations {sorted(unknown)}; known: {', '.join(known)}")
    found = {}
    with nullcontext(keep) if keep else tempfile.TemporaryDirectory(prefix="qdiff-versions-") as folder:
        for name in only or known:
            found[name] = outcome(known[name], wheel.resolve(), Path(folder) / name.replace(", ", "-"))
            if keep is None:
                shutil.rmtree(folder, ignore_errors=True)  # gigabytes each
    print(table(found))
    failed = [each for each in found.values() if any(each["results"].values())]
    raise typer.Exit(1 if failed else 0)


def outcome(combination: Combination, wheel: Path, folder: Path) -> dict[str, Any]:
    """What smoke.py says in an environment of its own."""
    interpreter = shutil.which(f"python{combination.python}")
    if interpreter is None:
        return _did_not("find", f"there is no python{combination.python} on the path")
    python = str(folder / "bin" / "python")
    print(f"{combination.name}: {' '.join(combination.pins)}", file=sys.stderr)
    asked = [f"{wheel}[{','.join(EXTRAS)}]", *combination.pins]
    for what, command in {
        "environment": [interpreter, "-m", "venv", str(folder)],
        "install": [python, "-m", "pip", "install", "--quiet", *asked],
        "run": [python, "-P", str(SMOKE), str(EXAMPLE)],
    }.items():
        done = subprocess.run(command, capture_output=True, text=True, cwd="/")
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            return _did_not(what, done.stderr.strip().splitlines()[-1][:300])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _did_not(what: str, why: str) -> dict[str, Any]:
    return {"versions": {}, "results": {what: why}}


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown, and below it what went wrong."""
    columns = list(dict.fromkeys(key for each in found.values() for key in (*each["versions"], *each["results"])))
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    wrong = []
    for name, each in found.items():
        cells = each["versions"] | {job: "fails" if why else "works" for job, why in each["results"].items()}
        lines.append(f"| {name} | " + " | ".join(cells.get(column, "–") for column in columns) + " |")
        wrong += [f"{name}, {job}: {why}" for job, why in each["results"].items() if why]
    return "\n".join([*lines, "", *wrong])


if __name__ == "__main__":
    typer.run(main)
