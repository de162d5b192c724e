"""Calibration shared out: what all of them know is what one would have seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from diffusers import DDIMScheduler
from in_threads import in_threads
from torch import Tensor, nn

from qdiff_fx.calibration import CalibrationData, calibrate, collect_calibration_data, plan
from qdiff_fx.calibration.in_flight import InFlight, ShownCalls
from qdiff_fx.distributed import ALONE, Workers
from qdiff_fx.errors import WorkerError
from qdiff_fx.observers import TimestepObserver
from qdiff_fx.workflow.shared import adding_up, calibrate_together


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


@pytest.mark.parametrize("count", [2, 4])
def test_what_each_saw_while_it_drew_adds_up(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "GROUP", 2)
    shown = ShownCalls(3, 4, 20, 2)

    def work(workers: Workers) -> dict[str, Any]:
        network, observed = Drawn(), Watching()
        with adding_up(observed, workers):
            observing = InFlight(observed, shown)
            options = {"num_samples": 6, "num_inference_steps": 4, "seed": 0, "progress": False}
            collect_calibration_data(
                network, scheduler=DDIMScheduler(100), workers=workers, observing=observing, **options
            )
        return seen(observed)

    whole = work(ALONE)
    assert sum(whole["observer.count"]) == shown.calls * 2 * 64
    assert in_threads(count, work) == [whole] * count


class Drawn(nn.Module):
    """A float network that `Watching` observes."""

    config: ClassVar = {"in_channels": 1, "sample_size": 8}

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        return sample
