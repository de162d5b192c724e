"""A schedule as a JSON file: what `qdiff schedule` writes and `qdiff quantize --schedule` reads."""

from __future__ import annotations

import json
from pathlib import Path

from qdiff_fx.atomic import write_text
from qdiff_fx.errors import ArtifactError
from qdiff_fx.schedule import Schedule
from qdiff_fx.storage.checked_schedule import schedule_from_json
from qdiff_fx.storage.strict_json import read_json


def write_schedule(schedule: Schedule, file: Path) -> None:
    """The file appears only when it is complete."""
    write_text(file, json.dumps(schedule.to_json(), indent=1) + "\n")


def read_schedule(file: Path) -> Schedule:
    """The schedule in a file.

    Raises:
        ArtifactError: there is none, it is not JSON, or it holds something that is no schedule.
    """
    if not file.is_file():
        raise ArtifactError("there is no such file", where=str(file), fix="Write one with `qdiff schedule`")
    return schedule_from_json(read_json(file), str(file))
