"""The recorded digests: one JSON file for each kind of processor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from .processor import Processor

FOLDER = Path(__file__).parent / "records"
Digests = Mapping[str, str]


def record_file(processor: Processor) -> Path:
    """Where the record of this kind of processor is, if there is one."""
    return FOLDER / f"{processor.key}.json"


def known_kinds() -> list[str]:
    """The kinds of processors there are records of."""
    return sorted(file.stem for file in FOLDER.glob("*.json"))


def read(file: Path) -> dict[str, Digests]:
    """Digests by case."""
    cases: dict[str, Digests] = json.loads(file.read_text())["cases"]
    return cases


def write(file: Path, processor: Processor, measured: Mapping[str, Digests]) -> None:
    """Write the record; cases of an existing one that were not measured now are kept."""
    cases = (read(file) if file.is_file() else {}) | measured
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"processor": processor.to_json(), "cases": cases}, indent=1, sort_keys=True) + "\n")


def differences(case: str, recorded: Digests, measured: Digests) -> list[str]:
    """Each digest that changed, is gone, or is new, in one line with its case and name."""
    lines = [
        f"{case}: {name}: {_change(recorded.get(name), measured.get(name))}"
        for name in sorted(recorded.keys() | measured.keys())
        if recorded.get(name) != measured.get(name)
    ]
    return lines


def _change(recorded: str | None, measured: str | None) -> str:
    if recorded is None:
        return "is not in the record"
    if measured is None:
        return "is recorded, but was not computed"
    return f"{recorded[:12]} was recorded, now it is {measured[:12]}"
