"""What long work has come to so far, on disk: a run that was killed goes on, and ends as if it had not been."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qdiff_fx.atomic import entries, replacing_file, write_text
from qdiff_fx.errors import ArtifactError

VERSION = 1


class Checkpoint:
    """A folder with one file for each finished step.

    Args:
        folder: made if it is missing; ``None`` keeps nothing.
        fingerprint: what the result depends on, a digest or a short text for each thing ("network", "data", ...).
        work: of what, in a word that file names may hold.
    Raises:
        ArtifactError: the folder belongs to a run of another fingerprint, or holds something else.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None, fingerprint: Mapping[str, str], work: str = "reconstruction"
    ):
        self.folder = None if folder is None else Path(folder)
        self.fingerprint, self.work = dict(fingerprint), work
        if self.folder is not None:
            self._open(self.folder)

    def _open(self, folder: Path) -> None:
        manifest = folder / f"{self.work}.json"
        header = {"format": f"qdiff_fx {self.work}", "version": VERSION, "fingerprint": self.fingerprint}
        if not manifest.is_file():
            if folder.exists() and entries(folder):
                raise ArtifactError("it holds something else", where=str(folder), fix="Choose an empty folder")
            folder.mkdir(parents=True, exist_ok=True)
            write_text(manifest, json.dumps(header, indent=1))
            return
        found = _read_header(manifest)
        if (found.get("format"), found.get("version")) != (header["format"], VERSION):
            raise ArtifactError(
                f"it is of {found.get('format')!r} version {found.get('version')!r}",
                where=str(manifest),
                fix="Choose another folder",
            )
        different = differing(found.get("fingerprint", {}), self.fingerprint)
        if different:
            raise ArtifactError(
                f"it was begun with another {' and another '.join(different)}",
                where=str(folder),
                fix="Give the folder of this run, or an empty one to start again",
            )

    def load(self, step: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors and the report of a finished step; ``None`` where it is still to be done.

        Raises:
            ArtifactError: its file is damaged.
        """
        file = self._file(step)
        if file is None or not file.is_file():
            return None
        try:
            with safe_open(file, framework="pt") as stored:
                tensors = {key: stored.get_tensor(key).clone() for key in stored.keys()}  # noqa: SIM118 (not a dict)
                return tensors, json.loads(stored.metadata()["report"])
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ArtifactError(
                f"it is damaged ({error})", where=str(file), fix="Delete this file to do that step again"
            ) from error

    def save(self, step: str, tensors: Mapping[str, Tensor], report: Mapping[str, Any]) -> None:
        """Keep a finished step; a reader sees the whole file or none.

        Raises:
            ArtifactError: it cannot be written; the disk is full, say.
        """
        file = self._file(step)
        if file is not None:
            stored = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
            size = sum(tensor.nbytes for tensor in stored.values())
            with replacing_file(file, expected_bytes=size) as draft:
                save_file(stored, draft, metadata={"report": json.dumps(report)})

    def _file(self, step: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{step}.safetensors"


def differing(kept: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names under which two fingerprints do not agree, or of which one of them knows nothing."""
    return sorted(name for name in {*kept, *now} if kept.get(name) != now.get(name))


def _read_header(manifest: Path) -> dict[str, Any]:
    try:
        header: dict[str, Any] = json.loads(manifest.read_text())
    except ValueError as error:
        raise ArtifactError(f"it is damaged ({error})", where=str(manifest), fix="Choose another folder") from error
    return header
