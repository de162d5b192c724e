"""The index of a pipeline's folder, of which nobody knows who wrote it: what loading it would bring in."""

from __future__ import annotations

from pathlib import Path

from qdiff_fx.errors import ArtifactError
from qdiff_fx.storage.strict_json import read_json

INDEX = "model_index.json"
LIBRARIES = ("diffusers", "transformers", "qdiff_fx")
"""Whose classes a folder may name; others are modules that importing would execute."""
Components = dict[str, tuple[str | None, str | None]]


def read_index(folder: Path) -> Components:
    """Components by name, each with library and class; both None where there is none.

    Raises:
        ArtifactError: the index is missing or damaged.
    """
    index = folder / INDEX
    if not index.is_file():
        raise ArtifactError(f"there is no {INDEX}", where=str(folder), fix="Give the folder of a pipeline")
    found = read_json(index)
    if not isinstance(found, dict):
        raise ArtifactError("it is no index of a pipeline", where=str(index))
    pairs = {name: each for name, each in found.items() if isinstance(each, list) and len(each) == 2}
    return {name: (library, kind) for name, (library, kind) in pairs.items() if _is_name(library) and _is_name(kind)}


def check_is_data(folder: Path) -> None:
    """Raises ArtifactError where loading the pipeline would execute something that lies beside it, or that it names."""
    index = folder / INDEX
    components = read_index(folder)
    brought = [
        name for name, (library, _) in components.items() if library and (folder / name / f"{library}.py").exists()
    ]
    if brought or not isinstance(read_json(index).get("_class_name"), str):
        raise ArtifactError(
            f"{brought[0] if brought else 'the pipeline'} brings code of its own, which is not executed for this",
            where=str(index),
            fix="Load it in float and call qdiff_fx.quantize",
        )


def _is_name(value: object) -> bool:
    return value is None or isinstance(value, str)
