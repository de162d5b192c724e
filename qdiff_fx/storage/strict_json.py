"""JSON from a file that nobody vouches for: no deep nesting, no number beyond 64 bits, no key twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qdiff_fx.errors import ArtifactError

MOST_BYTES = 256 << 20
DEEPEST = 64
INT64 = range(-(1 << 63), 1 << 63)
LONGEST_INT = 20  # digits and sign of the largest


def parse_json(text: str, where: str) -> Any:
    """What the text says.

    Raises:
        ArtifactError: it is no JSON, or one that only somebody who means harm would write.
    """
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_int=_int64)
    except RecursionError:
        raise _nested(where) from None
    except ValueError as error:
        raise ArtifactError(f"it is no JSON ({error})", where=where, fix="Save the network again") from error
    _check_depth(found, where)
    return found


def json_text(data: Any) -> str:
    """The text that `read_json` reads, without a space."""
    return json.dumps(data, separators=(",", ":"))


def read_json(file: Path) -> Any:
    """What a file says. Raises ArtifactError like `parse_json`, and for more than 256 MiB."""
    return parse_json(read_text(file), file.name)


def read_text(file: Path) -> str:
    """The text of a file, unless it is absurdly long. Raises ArtifactError."""
    size = file.stat().st_size
    if size > MOST_BYTES:
        raise ArtifactError(f"it has {size} bytes, more than the {MOST_BYTES} any network needs", where=file.name)
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ArtifactError(f"it is no text ({error})", where=file.name, fix="Save the network again") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        (name, _), *_ = (Counter(name for name, _ in pairs) - Counter(found.keys())).items()
        raise ValueError(f"{name!r} occurs twice")
    return found


def _int64(text: str) -> int:
    if len(text) > LONGEST_INT or int(text) not in INT64:
        raise ValueError(f"the number {text[:LONGEST_INT]}… is beyond 64 bits")
    return int(text)


def _check_depth(found: Any, where: str) -> None:
    level, depth = _containers([found]), 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise _nested(where)
        level = [inner for each in level for inner in _containers(each.values() if isinstance(each, dict) else each)]


def _containers(items: Iterable[Any]) -> list[Any]:
    return [each for each in items if isinstance(each, dict | list)]


def _nested(where: str) -> ArtifactError:
    return ArtifactError(f"it is nested deeper than {DEEPEST} levels", where=where)
