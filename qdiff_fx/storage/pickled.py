"""A saved folder as bytes, for networks that are pickled, copied to another process or given to `torch.save`.

What is in the bytes is read by our own reader, as a folder is; pickle itself sees nothing but them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from qdiff_fx.errors import ArtifactError

Read = TypeVar("Read")


def to_files(write: Callable[[Path], object]) -> dict[str, bytes]:
    """Name and content of every file that `write` puts into the folder it is given."""
    with TemporaryDirectory() as above:
        folder = Path(above) / "network"
        write(folder)
        return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def from_files(files: Mapping[str, bytes], read: Callable[[Path], Read]) -> Read:
    """What `read` makes of a folder with these files in it.

    Raises:
        ArtifactError: a name is no plain name of a file, or whatever is wrong with the content.
    """
    with TemporaryDirectory() as above:
        folder = Path(above) / "network"
        folder.mkdir()
        for name, content in files.items():
            if Path(name).name != name:
                raise ArtifactError(f"it holds a file called {name!r}", where="pickled network")
            (folder / name).write_bytes(content)
        return read(folder)
