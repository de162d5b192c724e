"""Prepared networks on disk: made once, found again by later runs that are given the same folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from benchmarks.contender import Batch, Contender
from benchmarks.networks import Network

CALIBRATION_BATCHES = 2


@contextmanager
def artifact_cache(chosen: Path | None) -> Iterator[Path]:
    """The folder that was chosen for artifacts, or one that ends with the block."""
    with nullcontext(chosen) if chosen is not None else tempfile.TemporaryDirectory(prefix="qdiff-bench-") as folder:
        yield Path(folder)


def artifact_folder(cache: Path, network: Network, contender: Contender) -> Path | None:
    """Where the contender's prepared network belongs; None when it needs none."""
    return cache / network.name / contender.artifact if contender.artifact else None


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
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    if batches is None:
        batches = [network.inputs(seed) for seed in range(CALIBRATION_BATCHES)]
    try:
        contender.prepare(network.build(False), network, batches, unfinished)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
