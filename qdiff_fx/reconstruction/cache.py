"""What flows between the units for every calibration sample, in files that are mapped into memory."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from qdiff_fx.errors import CalibrationError

STORED = torch.float16
"""Half the size; its rounding error lies 70 dB below the values."""


class ActivationCache:
    """Tensors of N rows by name, each in a file of its own that vanishes with the cache.

    Args:
        folder: where the files go; a folder of the system's for temporary files by default.
    Use it in a `with` block.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None):
        self._temporary = tempfile.TemporaryDirectory(prefix="qdiff-cache-", dir=folder)
        self._tensors: dict[str, Tensor] = {}

    def __enter__(self) -> ActivationCache:
        return self

    def __exit__(self, *_: object) -> None:
        self._tensors.clear()
        self._temporary.cleanup()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def put(self, name: str, tensor: Tensor) -> None:
        """Keep a whole tensor in memory, as it is: network inputs."""
        self._tensors[name] = tensor

    def allocate(self, name: str, shape: tuple[int, ...]) -> None:
        """Reserve room for a tensor, [N, ...].

        Raises:
            CalibrationError: the disk is full.
        """
        file = self._file(name)
        count = torch.Size(shape).numel()
        try:
            with file.open("wb") as stream:
                # All of it now: writing to a mapped page that finds no room would end the process.
                os.posix_fallocate(stream.fileno(), 0, max(1, count * STORED.itemsize))
        except OSError as error:
            file.unlink(missing_ok=True)
            if error.errno != errno.ENOSPC:
                raise
            raise CalibrationError(
                f"the disk is full: {count * STORED.itemsize:,} bytes are needed for {name}",
                where=str(file.parent),
                fix="Free space, point cache_dir at another disk, or lower samples or cache_bytes",
            ) from error
        self._tensors[name] = torch.from_file(str(file), shared=True, size=count, dtype=STORED).view(shape)

    def write(self, name: str, rows: slice, values: Tensor) -> None:
        """Fill some rows.

        Raises:
            CalibrationError: a value does not fit half precision, or is not finite.
        """
        stored = values.to(STORED)
        if not bool(stored.isfinite().all()):
            raise CalibrationError(
                "an activation is not finite in half precision",
                where=name,
                fix="Run the float network on the same input: it overflows there too, or keep this layer in float",
            )
        self._tensors[name][rows] = stored

    def read(self, name: str, rows: slice | Tensor) -> Tensor:
        """Some rows, float32 (integers as they are)."""
        values = self._tensors[name][rows]
        return values.to(torch.float32) if values.dtype == STORED else values

    def drop(self, name: str) -> None:
        """Forget a tensor and give its room back."""
        del self._tensors[name]
        self._file(name).unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return Path(self._temporary.name) / f"{name}.half"
