"""Folders that are checked byte by byte: a manifest holds a digest of every file, itself included."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from qdiff_fx.atomic import entries
from qdiff_fx.errors import ArtifactError, QDiffError, printable
from qdiff_fx.storage.fields import Fields
from qdiff_fx.storage.pipeline_index import INDEX
from qdiff_fx.storage.strict_json import parse_json, read_text

MAPPED_BYTES = 16 << 20  # while it is loaded, so much of a file is in memory beside what was read of it


@dataclass(frozen=True)
class FolderKind:
    """What a folder holds, and in which files.

    Attributes:
        noun: what a saved one is called: "a saved network".
        writer: the function that writes it.
        version: of its format; newer ones are refused.
        manifest: name of the file that describes the others.
        files: names of the others.
    """

    noun: str
    writer: str
    version: int
    manifest: str
    files: tuple[str, ...]


def seal(folder: Path, kind: FolderKind, manifest: dict[str, Any]) -> None:
    """Write the manifest beside the finished files, with a digest of each and of itself."""
    manifest["sha256"] = {name: file_digest(folder / name) for name in kind.files}
    manifest["manifest_sha256"] = manifest_digest(manifest)
    (folder / kind.manifest).write_text(manifest_text(manifest))


def read_manifest(path: Path, kind: FolderKind) -> dict[str, Any]:
    """The manifest of a folder of this kind, once it and every file it names are as they were written.

    Raises:
        ArtifactError: the folder is something else, incomplete, damaged, or of a newer version.
    """
    file = path / kind.manifest
    if not file.is_file() and (path / INDEX).is_file():
        raise ArtifactError(
            "it is the folder of a pipeline, not of one network",
            where=str(path),
            fix=f"Name one in it: {path / 'unet'}",
        )
    if not file.is_file():
        found = f"is not a saved {kind.noun}: it has no {kind.manifest}" if path.is_dir() else "does not exist"
        raise ArtifactError(f"the folder {found}", where=str(path), fix=f"Give a folder written by {kind.writer}")
    text = read_text(file)
    fields = Fields(parse_json(text, kind.manifest), kind.manifest)
    version = fields.whole("format_version", 1, 1 << 31)
    if version > kind.version:
        raise ArtifactError(
            f"it has format version {version}, this release reads up to {kind.version}",
            where=str(path),
            fix="Upgrade qdiff_fx",
        )
    manifest = dict(fields.data)
    # The text too, or a changed byte that means the same (1e-5, 1E-5) would pass.
    if fields.text("manifest_sha256") != manifest_digest(manifest) or text != manifest_text(manifest):
        raise ArtifactError(
            f"{kind.manifest} is damaged: its checksum differs", where=str(path), fix="Copy or save it again"
        )
    for name in kind.files:
        check_file(path, name, fields.object("sha256").text(name))
    return manifest


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong with what is read is the folder's fault."""
    try:
        yield
    except ArtifactError as error:
        if str(path) in error.where:
            raise
        raise ArtifactError(error.what, where=f"{path}, {error.where}", fix=error.fix) from _shown_as_cause(error)
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise ArtifactError(
            f"it cannot be read ({cause})", where=str(path), fix="Save the network again"
        ) from _shown_as_cause(error)


@contextmanager
def will_load(kind: FolderKind) -> Iterator[None]:
    """Whatever is found wrong with what is about to be written would be found by whoever loads it: too late."""
    try:
        yield
    except QDiffError as error:
        raise ArtifactError(
            f"the {kind.noun} would not load again: {error.what}",
            where=error.where,
            fix=error.fix or "Compute it otherwise",
        ) from error


def _shown_as_cause(error: BaseException) -> BaseException | None:
    """The error, unless it or a cause of it quotes what a terminal would obey: a traceback prints it as it is."""
    each: BaseException | None = error
    while each is not None:
        if printable(str(each)) != str(each):
            return None
        each = each.__cause__ or each.__context__
    return error


@contextmanager
def lowering(path: Path) -> Iterator[None]:
    """What a backend cannot make of a graph that was read is the folder's fault, unless the backend says otherwise."""
    try:
        yield
    except QDiffError:
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise ArtifactError(
            f"no backend can run it ({cause})", where=str(path), fix="Save the network again"
        ) from error


def read_tensors(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor, in memory of its own.

    The file is mapped anew now and then: pages that were read stay in memory for as long as their mapping.
    """
    with safe_open(file, framework="pt") as stored:
        names = list(stored.keys())
    while names:
        with safe_open(file, framework="pt") as stored:
            read = 0
            while names and read < MAPPED_BYTES:
                tensor = stored.get_tensor(names[-1]).clone()
                read += tensor.nbytes
                yield names.pop(), tensor


def unshared(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies where two names look into one storage, which safetensors refuses."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        address = tensor.untyped_storage().data_ptr()
        if address in seen or tensor.numel() != tensor.untyped_storage().nbytes() // tensor.element_size():
            tensors[name] = tensor.clone()
        seen.add(address)
    return tensors


def check_replaceable(target: Path, kind: FolderKind) -> None:
    """Only an empty folder or one of the same kind is ever overwritten, and only one with nothing else beside it."""
    if not target.exists() or (target.is_dir() and not entries(target)):
        return
    if not (target / kind.manifest).is_file():
        raise ArtifactError(
            f"it exists and is not a saved {kind.noun}", where=str(target), fix="Choose another folder or remove it"
        )
    others = sorted({file.name for file in entries(target)} - {kind.manifest, *kind.files})
    if others:
        raise ArtifactError(
            f"it holds {others[0]!r} beside a saved {kind.noun}", where=str(target), fix="Choose another folder"
        )


def check_file(path: Path, name: str, digest: str) -> None:
    """Raises ArtifactError unless there is a file of that name in the folder, with that digest."""
    if not (path / name).is_file():
        found = "is not a file" if (path / name).exists() else "is missing"
        raise ArtifactError(f"{name} {found}", where=str(path), fix="Save the network again")
    if file_digest(path / name) != digest:
        raise ArtifactError(f"{name} is damaged: its checksum differs", where=str(path), fix="Copy or save it again")


def manifest_text(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest, indent=1)


def manifest_digest(manifest: dict[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
