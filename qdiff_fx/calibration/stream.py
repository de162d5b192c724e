"""Rows on their way through a network, block by block: each block is visited once, whatever it is visited for.

Before a block runs, what it reads has been computed for every chunk and is at hand; afterwards what it computed is, and
what nobody reads any more is gone. How the block is run is the caller's affair: in float, on integers, more than once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

import torch
from torch import Tensor

from qdiff_fx.calibration.chunk_store import ChunkStore
from qdiff_fx.calibration.chunks import Chunk
from qdiff_fx.distributed import ALONE, Workers
from qdiff_fx.errors import CalibrationError
from qdiff_fx.ir.blocks import Block

Run = Callable[..., Sequence[Tensor]]
"""Takes the values of a part's inputs by position, and returns those of its outputs."""


class Stream:
    """The values between the blocks of one network, for all chunks. Use it in a `with` block.

    Args:
        chunks: the rows.
        cache_dir: where the values are kept; the system's folder for temporary files by default.
        cache_bytes: what they may take.
        workers: processes that share the chunks.
    Attributes:
        numbers: of this process's chunks.
    """

    def __init__(
        self,
        chunks: Sequence[Chunk],
        cache_dir: str | os.PathLike[str] | None = None,
        cache_bytes: int | None = None,
        workers: Workers = ALONE,
    ):
        self.chunks, self.workers = chunks, workers
        self.numbers = workers.share(range(len(chunks)))
        self.store = ChunkStore(cache_dir, cache_bytes)

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.store.__exit__(kind, error, trace)

    @torch.no_grad()
    def run(self, run: Run, inputs: Sequence[str]) -> Iterator[tuple[int, Sequence[Tensor]]]:
        """The outputs of a part for each chunk of this process, by the chunk's number.

        Args:
            run: the part.
            inputs: names of what it reads: inputs of the network, and values that earlier blocks left.
        """
        for number in self.numbers:
            yield number, run(*(self.value(name, number) for name in inputs))

    def value(self, name: str, chunk: int) -> Tensor:
        """An input of the network, or what a block left."""
        given = self.chunks[chunk].inputs
        return given[name] if name in given else self.store.read(name, chunk)

    @contextmanager
    def keeping(self, run: Run, inputs: Sequence[str], outputs: int, prefix: str) -> Iterator[list[str]]:
        """Inside the block, the outputs of a part, so many, are at hand for this process's chunks under these names."""
        names = [f"{prefix} {index}" for index in range(outputs)]
        for number, values in self.run(run, inputs):
            for name, value in zip(names, values, strict=True):
                self.store.write(name, number, value)
        try:
            yield names
        finally:
            for name in names:
                self.store.drop(name)

    def pass_block(self, block: Block, run: Run, inputs: Sequence[str]) -> None:
        """Go on behind a block: keep what it computes for later ones, and forget what is finished.

        Args:
            run, inputs: as of `run`; it returns the block's outputs.

        Raises:
            CalibrationError: a value is not a number, the disk is full, or the cap is reached.
        """
        for number, outputs in self.run(run, inputs):
            for name, value in zip(block.outputs, outputs, strict=True):
                self._check(name, value, number, block)
                self.store.write(name, number, value)
        for name in block.finished:
            self.store.drop(name)

    def _check(self, name: str, value: Tensor, number: int, block: Block) -> None:
        # A sum needs no memory. That it is NaN may also come from infinities of both signs.
        if value.is_floating_point() and bool(value.sum().isnan()) and bool(value.isnan().any()):
            rows = self.chunks[number].rows
            raise CalibrationError(
                f"it holds NaN for rows {rows.start} to {rows.stop - 1} of the calibration data",
                where=f"{name}, behind {block.layers[-1].name}",
                fix="Run the float network on these rows: it may overflow there too; or keep layers before it in float",
            )
