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
AS_READ = (STORED, torch.bfloat16)
"""What may be kept: the first is read back as float32, the others as they are."""


class ActivationCache:
    """Tensors over N samples by name, each in a file of its own that vanishes with the cache.

    Images lie there channels last, which is the layout convolutions are fastest in.

    Args:
        samples: N.
        folder: where the files go; the system's folder for temporary files by default.
    Use it in a `with` block.
    """

    def __init__(self, samples: int, folder: str | os.PathLike[str] | None = None):
        self.samples = samples
        self._temporary = tempfile.TemporaryDirectory(prefix="qdiff-cache-", dir=folder)
        self._tensors: dict[str, Tensor] = {}
        self._tails: dict[str, tuple[int, ...]] = {}

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

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(self._tensors[name].nbytes for name in self._tails)

    def write(self, name: str, rows: slice, values: Tensor, dtype: torch.dtype = STORED) -> None:
        """Fill the rows of some samples, [R, ...] with R a multiple of their number.

        Args:
            dtype: what is kept; one of `AS_READ`.

        Raises:
            CalibrationError: the disk is full; a value does not fit half precision, or is not finite.
        """
        count = rows.stop - rows.start
        stored = _channels_last(values).reshape(count, -1).to(dtype)
        if not bool(stored.isfinite().all()):
            raise CalibrationError(
                "an activation is not finite in half precision",
                where=name,
                fix="Run the float network on the same input: it overflows there too, or keep this layer in float",
            )
        if name not in self._tensors:
            self._tensors[name] = self._reserve(name, stored.shape[1], dtype)
            self._tails[name] = (values.shape[0] // count, *_channels_last(values).shape[1:])
        self._tensors[name][rows] = stored

    def read(self, name: str, rows: slice | Tensor) -> Tensor:
        """What `write` was given for some samples; or rows of what `put` was."""
        values = self._tensors[name][rows]
        if name not in self._tails:
            return values
        repeats, *tail = self._tails[name]
        if values.dtype == STORED:
            values = values.to(torch.float32)
        return _channels_second(values.view(len(values) * repeats, *tail))

    def drop(self, name: str) -> None:
        """Forget a tensor and give its room back."""
        del self._tensors[name], self._tails[name]
        self._file(name).unlink(missing_ok=True)

    def _reserve(self, name: str, elements: int, dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor [N, elements] in a file."""
        file, count = self._file(name), self.samples * elements
        try:
            with file.open("wb") as stream:
                # All of it now: writing to a mapped page that finds no room would end the process.
                os.posix_fallocate(stream.fileno(), 0, max(1, count * dtype.itemsize))
        except OSError as error:
            file.unlink(missing_ok=True)
            if error.errno != errno.ENOSPC:
                raise
            raise CalibrationError(
                f"the disk is full: {count * dtype.itemsize:,} bytes are needed for {name}",
                where=str(file.parent),
                fix="Free space, give a cache_dir on another disk, or lower samples or cache_bytes",
            ) from error
        return torch.from_file(str(file), shared=True, size=count, dtype=dtype).view(self.samples, elements)

    def _file(self, name: str) -> Path:
        return Path(self._temporary.name) / f"{name}.half"


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.movedim(1, -1) if tensor.dim() == 4 else tensor


def _channels_second(tensor: Tensor) -> Tensor:
    return tensor.movedim(-1, 1) if tensor.dim() == 4 else tensor
