"""Which versions are tried together."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
EXTRAS = ("pipelines", "onnx")
LOWER = re.compile(r"(?P<name>[\w.-]+)>=(?P<version>[\d.]+)")


@dataclass(frozen=True)
class Combination:
    """An interpreter, and what pip is told beside the wheel; of what is not named it takes the newest that fits."""

    name: str
    python: str
    pins: tuple[str, ...] = ()


def lower_bounds() -> tuple[str, ...]:
    """Every dependency at the oldest version that pyproject.toml allows."""
    extras = PROJECT["optional-dependencies"]
    asked = [*PROJECT["dependencies"], *(each for extra in EXTRAS for each in extras[extra])]
    found = [LOWER.match(each) for each in asked]
    return tuple(f"{each['name']}=={each['version']}" for each in found if each)


def pythons() -> list[str]:
    """Those that the classifiers name, oldest first."""
    named = [re.search(r"Python :: (3\.\d+)$", each) for each in PROJECT["classifiers"]]
    return sorted((each[1] for each in named if each), key=lambda version: int(version.split(".")[1]))


def combinations() -> list[Combination]:
    oldest, *between, newest = pythons()
    middle = [Combination(f"between, {python}", python, ("torch==2.13.*", "diffusers==0.38.*")) for python in between]
    return [Combination("oldest", oldest, lower_bounds()), *middle, Combination("newest", newest)]
