"""Calibration shared out: what all of them know is what one would have seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from in_threads import in_threads
from torch import Tensor, nn

from qdiff_fx.calibration import CalibrationData, calibrate
from qdiff_fx.distributed import Workers
from qdiff_fx.errors import WorkerError
from qdiff_fx.observers import TimestepObserver
from qdiff_fx.workflow.shared import calibrate_together


class Watching(nn.Module):
    """As much of a prepared network as calibration needs."""

    def __init__(self) -> None:
        super().__init__()
        self.observer = TimestepObserver(4, 100, name="conv_in input")

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        result: Tensor = self.observer(sample, timestep)
        return result


def data(*timesteps: float) -> CalibrationData:
    generator = torch.Generator().manual_seed(0)
    batches = [
        {"sample": torch.randn(2, 1, 8, 8, generator=generator) * (1 + t), "timestep": torch.full((2,), t)}
        for t in timesteps
    ]
    return CalibrationData(batches)


def seen(network: nn.Module) -> dict[str, Any]:
    return {name: buffer.tolist() for name, buffer in network.named_buffers()}


@pytest.mark.parametrize("timesteps", [(99.0, 60.0, 30.0, 1.0, 0.0), (0.9, 0.5, 0.25), (99.0,)])
@pytest.mark.parametrize("count", [2, 3])
def test_all_know_what_one_would_have_seen(count: int, timesteps: tuple[float, ...], tmp_path: Path) -> None:
    whole = Watching()
    calibrate(whole, data(*timesteps), progress=False)

    def work(workers: Workers) -> Watching:
        network = Watching()
        prepared = network
        calibrate_together(prepared, data(*timesteps), workers, resume_dir=tmp_path, progress=False)
        return network

    for _ in ("begun", "gone on with"):
        networks = in_threads(count, work)
        assert all(seen(network) == seen(whole) for network in networks)
        assert all(network.observer.schedule == whole.observer.schedule for network in networks)
    assert len(list(tmp_path.iterdir())) == min(count, len(timesteps))


def test_a_bad_batch_of_one_stops_all() -> None:
    batches = data(99.0, 60.0, 30.0)
    batches[1]["sample"][0] = torch.nan

    def work(workers: Workers) -> None:
        calibrate_together(Watching(), batches, workers, resume_dir=None, progress=False)

    first, _ = in_threads(2, work)
    assert isinstance(first, WorkerError)
    assert str(first).startswith("process 1 of 2: batch 0, argument 'sample': it holds NaN")
