"""What flows between the blocks of a network: kept in memory as far as it may be, else in files, one for each value.

Files are read and written, not mapped: pages of a mapped file would count as the process's memory.
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

IN_MEMORY = 1 << 29
"""Bytes that are kept in memory: most of what a small network hands on from one block to the next."""


@dataclass(frozen=True)
class _Entry:
    """A value of one chunk.

    Attributes:
        place: the tensor, or where in its file it begins.
        shape, stored: of what is kept.
        dtype: of what was given.
        images: the channels come last in what is kept.
    """

    place: Tensor | int
    shape: tuple[int, ...]
    stored: torch.dtype
    dtype: torch.dtype
    images: bool


@dataclass
class _Value:
    entries: dict[int, _Entry] = field(default_factory=dict)
    in_memory: int = 0
    file: _File | None = None


@dataclass
class _File:
    path: Path
    stream: FileIO
    size: int = 0


class ChunkStore:
    """Tensors by name and number of a chunk. Use it in a `with` block: everything vanishes with it.

    What half precision holds exactly is stored so, which is most of what integer kernels hand on; nothing is lost.

    Args:
        folder: where the files go; the system's folder for temporary files by default.
        cap: bytes that all values may take; None: what the disk has.
        in_memory: bytes of them that stay in memory.
    Attributes:
        folder: where the files are.
        peak: the most bytes there have been.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None = None, cap: int | None = None, in_memory: int = IN_MEMORY
    ):
        self._temporary = tempfile.TemporaryDirectory(prefix="qdiff-stream-", dir=folder)
        self.folder = self._temporary.name
        self._values: dict[str, _Value] = {}
        self._cap, self._bytes, self.peak = cap, 0, 0
        self._room = in_memory

    def __enter__(self) -> ChunkStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self._values):
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
        self._count(stored.nbytes)
        kept = self._values.setdefault(name, _Value())
        place: Tensor | int
        if stored.nbytes <= self._room:
            # What was given may be a view of something larger, or somebody's to write to.
            place = stored.clone() if stored.data_ptr() == value.data_ptr() else stored
            self._room -= stored.nbytes
            kept.in_memory += stored.nbytes
        else:
            place = self._write(name, kept, stored)
        kept.entries[chunk] = _Entry(place, tuple(plain.shape), stored.dtype, value.dtype, images)

    def read(self, name: str, chunk: int) -> Tensor:
        """What `write` was given; not to be written to."""
        kept = self._values[name]
        entry = kept.entries[chunk]
        stored = entry.place if isinstance(entry.place, Tensor) else _read(kept, entry, entry.place)
        value = stored.to(entry.dtype)
        return value.permute(0, 3, 1, 2) if entry.images else value

    @property
    def names(self) -> list[str]:
        return list(self._values)

    def drop(self, name: str) -> None:
        """Forget a value of all chunks and give its room back."""
        if name not in self._values:
            return  # a process without chunks wrote none
        kept = self._values.pop(name)
        self._room += kept.in_memory
        self._bytes -= kept.in_memory
        if kept.file is not None:
            kept.file.stream.close()
            kept.file.path.unlink()
            self._bytes -= kept.file.size

    def _write(self, name: str, kept: _Value, stored: Tensor) -> int:
        """Where in its file the value begins."""
        if kept.file is None:
            path = Path(self.folder) / name
            # Raw: what a buffer could not write it would try to write again when it is closed.
            kept.file = _File(path, path.open("w+b", buffering=0))
        file = kept.file
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
        file.size += stored.nbytes
        return file.size - stored.nbytes

    def _count(self, more: int) -> None:
        if self._cap is not None and self._bytes + more > self._cap:
            raise CalibrationError(
                f"{self._bytes + more:,} bytes would lie between two blocks of the network, the cap is {self._cap:,}",
                where="cache_bytes",
                fix="Raise cache_bytes, or show fewer rows",
            )
        self._bytes += more
        self.peak = max(self.peak, self._bytes)


def _read(kept: _Value, entry: _Entry, offset: int) -> Tensor:
    assert kept.file is not None
    stored = torch.empty(entry.shape, dtype=entry.stored)
    kept.file.stream.seek(offset)
    left = _bytes_of(stored)
    while left:
        left = left[kept.file.stream.readinto(left) :]
    return stored


def _bytes_of(tensor: Tensor) -> memoryview:
    found: memoryview = tensor.reshape(-1).view(torch.uint8).numpy().data
    return found


def _exactly_half(value: Tensor) -> Tensor:
    """The same numbers in float16 where that loses none of them."""
    if value.dtype != torch.float32 or not prod(value.shape):
        return value
    half = value.to(torch.float16)
    return half if torch.equal(half.to(torch.float32), value) else value
