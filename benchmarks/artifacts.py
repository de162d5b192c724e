"""Prepared networks on disk: made once, found again by later runs that are given the same folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from benchmarks.contender import Batch, Contender
from benchmarks.networks import Network
from qdiff_fx.atomic import replacing_folder

CALIBRATION_BATCHES = 2


@contextmanager
def artifact_cache(chosen: Path | None) -> Iterator[Path]:
    """The folder that was chosen for artifacts, or one that ends with the block."""
    with nullcontext(chosen) if chosen is not None else tempfile.TemporaryDirectory(prefix="qdiff-bench-") as folder:
        yield Path(folder)


def artifact_folder(cache: Path, network: Network, contender: Contender) -> Path | None:
    """Where the contender's prepared network belongs; None when it needs none."""
    return cache / network.folder / contender.artifact if contender.artifact else None


def ensure_artifact(
    cache: Path, network: Network, contender: Contender, batches: Iterable[Batch] | None = None
) -> None:
    """Prepare the contender's network unless it is there already.

    Without `batches` it is calibrated on random inputs, which is enough to time it. The folder appears only when
    it is complete.
    """
    folder = artifact_folder(cache, network, contender)
    if folder is None or folder.exists():
        return
    if batches is None:
        batches = [network.inputs(seed) for seed in range(CALIBRATION_BATCHES)]
    with replacing_folder(folder) as unfinished:
        contender.prepare(network.build(False), network, batches, unfinished)
