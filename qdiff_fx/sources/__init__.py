"""What the commands call SOURCE: the bundled model, a diffusers pipeline, or a Python file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qdiff_fx.sources.base import Source, SourceError
from qdiff_fx.sources.digits import DIGITS, DigitsSource
from qdiff_fx.sources.drawing import DrawingSource
from qdiff_fx.sources.pipeline import load_pipeline
from qdiff_fx.sources.python_file import PythonFileSource
from qdiff_fx.sources.recorded import RecordedSource
from qdiff_fx.sources.request import SampleRequest
from qdiff_fx.storage.hub import HUB_ID


def resolve(identifier: str, prompts: Sequence[str] = (), given: Mapping[str, Any] | None = None) -> Source:
    """The source an identifier stands for.

    Args:
        identifier: ``digits``, a pipeline folder, a hub repository ``owner/name``, or the path of a ``.py`` file.
        prompts: for pipelines that take prompts.
        given: other arguments of a pipeline that say what to draw, see `Source`.

    Raises:
        SourceError: it is none of these, or cannot be loaded.
        ConfigError: the pipeline does not take what is given.
    """
    path = Path(identifier)
    if identifier == DIGITS:
        return DigitsSource()
    if path.suffix == ".py":
        return PythonFileSource(path)
    if path.is_dir() and (path / "model_index.json").is_file():
        return load_pipeline(identifier, prompts, given)
    if identifier and path.is_dir():
        raise SourceError("the folder has no model_index.json", where=identifier, fix="Give a diffusers pipeline")
    if not path.exists() and HUB_ID.fullmatch(identifier):
        return load_pipeline(identifier, prompts, given)
    raise SourceError(
        "there is no such source",
        where=identifier or "SOURCE",
        fix=f"Give {DIGITS!r}, a diffusers pipeline folder or hub id, or a Python file with load_unet()",
    )


__all__ = [
    "DIGITS",
    "DigitsSource",
    "DrawingSource",
    "PythonFileSource",
    "RecordedSource",
    "SampleRequest",
    "Source",
    "SourceError",
    "resolve",
]
