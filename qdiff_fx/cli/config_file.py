"""A configuration as a JSON file: what `qdiff tune` writes and `qdiff quantize --config` reads."""

from __future__ import annotations

import json
from pathlib import Path

from qdiff_fx.atomic import write_text
from qdiff_fx.config import QDiffConfig
from qdiff_fx.errors import ConfigError


def write_config(config: QDiffConfig, file: Path) -> None:
    """Write every field, rules included."""
    write_text(file, json.dumps(config.to_json(), indent=1) + "\n")


def read_config(file: Path) -> QDiffConfig:
    """The configuration in a file.

    Raises:
        ConfigError: the file is missing, is not JSON, or holds something that is no configuration.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError("there is no such file", where=str(file), fix="Write one with `qdiff tune`") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"it is not JSON ({error})", where=str(file)) from error
    if not isinstance(data, dict):
        raise ConfigError(f"it holds a {type(data).__name__}, not an object", where=str(file))
    try:
        return QDiffConfig.from_json(data)
    except ConfigError as error:
        raise ConfigError(error.what, where=f"{file}, {error.where}", fix=error.fix) from error
