"""What flows between the blocks of a network, kept in files: one for each value, chunk after chunk.

They are read and written, not mapped: pages of a mapped file would count as the process's memory.
"""

from __future__ import annotations

import errno
import os
import tempfile
from dataclasses import dataclass, field
from io import FileIO
from math import prod
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from qdiff_fx.errors import CalibrationError


@dataclass(frozen=True)
class _Entry:
    offset: int
    shape: tuple[int, ...]
    stored: torch.dtype
    dtype: torch.dtype
    images: bool  # the channels come last in the file


@dataclass
class _File:
    path: Path
    stream: FileIO
    size: int = 0
    entries: dict[int, _Entry] = field(default_factory=dict)


class ChunkStore:
    """Tensors by name and number of a chunk. Use it in a `with` block: everything vanishes with it.

    What half precision holds exactly is stored so, which is most of what integer kernels hand on; nothing is lost.

    Args:
        folder: where the files go; the system's folder for temporary files by default.
        cap: bytes that all of them may take; None: what the disk has.
    Attributes:
        folder: where the files are.
        peak: the most bytes there have been.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, cap: int | None = None):
        self._temporary = tempfile.TemporaryDirectory(prefix="qdiff-stream-", dir=folder)
        self.folder = self._temporary.name
        self._files: dict[str, _File] = {}
        self._cap, self._bytes, self.peak = cap, 0, 0

    def __enter__(self) -> ChunkStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self._files):
            self.drop(name)
        self._temporary.cleanup()

    def write(self, name: str, chunk: int, value: Tensor) -> None:
        """Keep a value of a chunk.

        Raises:
            CalibrationError: the disk is full, or the cap is reached.
        """
        images = value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
        plain = value.permute(0, 2, 3, 1) if images else value.contiguous()
        stored = _exactly_half(plain)
        file = self._file(name)
        self._count(stored.nbytes)
        try:
            file.stream.seek(file.size)
            left = _bytes_of(stored)
            while left:  # a raw file may take less than it is given
                left = left[file.stream.write(left) :]
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise CalibrationError(
                f"the disk is full: {stored.nbytes:,} bytes are needed besides {self._bytes:,}",
                where=self.folder,
                fix="Free space, give a cache_dir on another disk, or show fewer rows",
            ) from error
        file.entries[chunk] = _Entry(file.size, tuple(plain.shape), stored.dtype, value.dtype, images)
        file.size += stored.nbytes

    def read(self, name: str, chunk: int) -> Tensor:
        """What `write` was given."""
        file = self._files[name]
        entry = file.entries[chunk]
        stored = torch.empty(entry.shape, dtype=entry.stored)
        file.stream.seek(entry.offset)
        left = _bytes_of(stored)
        while left:
            left = left[file.stream.readinto(left) :]
        value = stored.to(entry.dtype)
        return value.permute(0, 3, 1, 2) if entry.images else value

    @property
    def names(self) -> list[str]:
        return list(self._files)

    def drop(self, name: str) -> None:
        """Forget a value of all chunks and give its room back."""
        if name not in self._files:
            return  # a process without chunks wrote none
        file = self._files.pop(name)
        file.stream.close()
        file.path.unlink()
        self._bytes -= file.size

    def _file(self, name: str) -> _File:
        if name not in self._files:
            path = Path(self.folder) / name
            # Raw: what a buffer could not write it would try to write again when it is closed.
            self._files[name] = _File(path, path.open("w+b", buffering=0))
        return self._files[name]

    def _count(self, more: int) -> None:
        if self._cap is not None and self._bytes + more > self._cap:
            raise CalibrationError(
                f"{self._bytes + more:,} bytes would lie between two blocks of the network, the cap is {self._cap:,}",
                where="cache_bytes",
                fix="Raise cache_bytes, or show fewer rows",
            )
        self._bytes += more
        self.peak = max(self.peak, self._bytes)


def _bytes_of(tensor: Tensor) -> memoryview:
    found: memoryview = tensor.reshape(-1).view(torch.uint8).numpy().data
    return found


def _exactly_half(value: Tensor) -> Tensor:
    """The same numbers in float16 where that loses none of them."""
    if value.dtype != torch.float32 or not prod(value.shape):
        return value
    half = value.to(torch.float16)
    return half if torch.equal(half.to(torch.float32), value) else value
