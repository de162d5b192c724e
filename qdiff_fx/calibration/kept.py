"""What observers have seen so far, on disk: a calibration that was killed goes on from there."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from torch import Tensor, nn

from qdiff_fx.calibration.data import Batch
from qdiff_fx.calibration.nested import flatten
from qdiff_fx.checkpoint import Checkpoint
from qdiff_fx.errors import CalibrationError
from qdiff_fx.networks.lora import WithLora
from qdiff_fx.observers import Observer
from qdiff_fx.quant.digest import digest

APART, SHARE = 10.0, 0.02
"""Seconds between two times that statistics are written, and the share of all time that writing may take."""
STEP = "statistics"


class KeptStatistics:
    """The statistics of a network's observers in a folder.

    Args:
        network: observers in it take over what the folder holds.
        what: a digest of what they are shown, in order.
        folder: None keeps nothing.
    Raises:
        ArtifactError: the folder belongs to another network or other batches.
    """

    def __init__(self, network: nn.Module, what: str, folder: str | os.PathLike[str] | None):
        self.seen = 0
        self._observers = {name: each for name, each in network.named_modules() if isinstance(each, Observer)}
        fingerprint = {} if folder is None else {"network": digest(_state_of(network)), "set of batches": what}
        self._checkpoint = None if folder is None else Checkpoint(folder, fingerprint, STEP)
        self._written, self._cost = time.monotonic(), 0.0
        found = None if self._checkpoint is None else self._checkpoint.load(STEP)
        if found is not None:
            tensors, report = found
            self.seen = report["batches"]
            self._restore(tensors, report["timestep_range"])

    def saw(self, batches: int) -> None:
        """So many batches have been shown by now; they are written if that is due."""
        if time.monotonic() - self._written >= max(APART, self._cost / SHARE):
            self._write(batches)

    def finish(self, batches: int) -> None:
        """All have been shown."""
        if batches > self.seen:
            self._write(batches)

    def _write(self, batches: int) -> None:
        if self._checkpoint is None:
            return
        begun = time.monotonic()
        tensors = {
            f"{name}.{key}": buffer for name, each in self._observers.items() for key, buffer in each.named_buffers()
        }
        span = next(iter(self._observers.values())).schedule.span
        self._checkpoint.save(STEP, tensors, {"batches": batches, "timestep_range": span})
        self._written = time.monotonic()
        self._cost = self._written - begun

    def _restore(self, tensors: dict[str, Tensor], span: Sequence[float] | None) -> None:
        for name, observer in self._observers.items():
            for key, buffer in observer.named_buffers():
                buffer.copy_(tensors[f"{name}.{key}"])
            if span is not None:
                observer.schedule = replace(observer.schedule, span=(span[0], span[1]))


def digest_of(batches: Iterable[Batch]) -> str:
    """A digest of batches.

    Raises:
        CalibrationError: they come one by one, and nobody can tell whether they are the same.
    """
    if not isinstance(batches, Sequence):
        raise CalibrationError(
            "batches that come one by one cannot be told from others",
            where="resume_dir",
            fix="Pass a list of them, or CalibrationData",
        )
    return digest(_contents(batches))


def _state_of(network: nn.Module) -> Iterator[str | Tensor]:
    """Weights, the LoRAs beside them, and what observers saw before."""
    yield str(getattr(getattr(network, "graph_module", None), "graph", ""))
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        yield name
        yield tensor
    for path, branch in network.branches.items() if isinstance(network, WithLora) else ():
        yield path
        yield branch.down
        yield branch.up


def _contents(batches: Sequence[Batch]) -> Iterator[str | Tensor]:
    for batch in batches:
        for name, tensor in sorted(flatten(batch).items()):
            yield name
            yield tensor
