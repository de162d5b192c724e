"""Write a file whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qdiff_fx.errors import ArtifactError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A draft beside ``path`` that takes its place on success and vanishes on failure.

    Raises:
        ArtifactError: the file system refuses; the previous file, if any, is untouched.
    """
    draft = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        os.replace(draft, path)
    except OSError as error:
        raise ArtifactError(f"it cannot be written ({error.strerror or error})", where=str(path)) from error
    finally:
        with suppress(OSError):
            draft.unlink()


def write_text(path: Path, text: str) -> Path:
    """Write ``text`` in UTF-8 through `replacing`."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")
    return path
