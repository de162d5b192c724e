"""Fields of a JSON object, each of the kind it has to be; errors say which one is not."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from qdiff_fx.errors import ArtifactError

LONGEST_TEXT = 4096


class Fields:
    """The fields of one object.

    Args:
        data: the object.
        where: file and place, as errors say it: "qdiff.json, signature".

    Every method raises ArtifactError where the field is missing or is of another kind.
    """

    def __init__(self, data: object, where: str):
        if not isinstance(data, Mapping):
            raise ArtifactError(f"it is {shown(data)}, not an object", where=where)
        self.data: Mapping[str, Any] = data
        self.where = where

    def __contains__(self, name: str) -> bool:
        return name in self.data

    def get(self, name: str) -> Any:
        if name not in self.data:
            raise ArtifactError(f"it has no {name!r}", where=self.where, fix="Save the network again")
        return self.data[name]

    def object(self, name: str) -> Fields:
        return Fields(self.get(name), f"{self.where}.{name}")

    def objects(self, name: str) -> list[Fields]:
        """A list of objects."""
        return [Fields(each, f"{self.where}.{name}[{index}]") for index, each in enumerate(self.items(name))]

    def items(self, name: str) -> list[Any]:
        found = self.get(name)
        if not isinstance(found, list):
            self._refuse(name, "a list")
        return found

    def text(self, name: str) -> str:
        """A string without anything a terminal would obey."""
        found = self.get(name)
        if not is_text(found):
            self._refuse(name, "a line of text")
        return str(found)

    def choice(self, name: str, choices: Collection[str]) -> str:
        found = self.get(name)
        if not isinstance(found, str) or found not in choices:
            self._refuse(name, f"one of {', '.join(map(repr, sorted(choices)))}")
        return str(found)

    def flag(self, name: str) -> bool:
        found = self.get(name)
        if not isinstance(found, bool):
            self._refuse(name, "true or false")
        return found

    def whole(self, name: str, low: int, high: int) -> int:
        """A whole number between these two, themselves included."""
        found = self.get(name)
        if not is_whole(found, low, high):
            self._refuse(name, f"a whole number from {low} to {high}")
        return int(found)

    def _refuse(self, name: str, expected: str) -> NoReturn:
        raise ArtifactError(f"{name} is {shown(self.data[name])}, not {expected}", where=self.where)


def is_text(value: object) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value) <= LONGEST_TEXT


def is_whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: object) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_scalar(value: object) -> bool:
    return isinstance(value, bool | int | float | str)


def shown(value: object) -> str:
    """A value in an error message: on one line, and short."""
    text = ascii(value) if is_scalar(value) or value is None else f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:80]}…"
