"""A schedule as a file has it: every field checked."""

from __future__ import annotations

from qdiff_fx.errors import ArtifactError, ConfigError
from qdiff_fx.schedule import MOST_STEPS, Schedule
from qdiff_fx.storage.checked_config import MOST_TIMESTEPS
from qdiff_fx.storage.fields import Fields, is_whole, shown


def schedule_from_json(data: object, where: str) -> Schedule:
    """The schedule that `Schedule.to_json` described.

    Raises:
        ArtifactError: a field is missing, of another kind or out of range.
    """
    fields = Fields(data, f"{where}, schedule")
    chosen = fields.items("chosen")
    if not all(is_whole(each, 0, MOST_STEPS) for each in chosen):
        raise ArtifactError(f"chosen is {shown(chosen)}, not a list of steps", where=fields.where)
    try:
        return Schedule(
            scheduler=fields.text("scheduler"),
            num_train_timesteps=fields.whole("num_train_timesteps", 1, MOST_TIMESTEPS),
            out_of=fields.whole("out_of", 1, MOST_STEPS),
            chosen=tuple(chosen),
            timesteps=_numbers(fields, "timesteps"),
            sigmas=_numbers(fields, "sigmas"),
        )
    except ConfigError as error:
        raise ArtifactError(error.what, where=fields.where, fix=error.fix) from error


def _numbers(fields: Fields, name: str) -> tuple[float, ...]:
    found = fields.items(name)
    if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in found):
        raise ArtifactError(f"{name} is {shown(found)}, not a list of numbers", where=fields.where)
    return tuple(map(float, found))
