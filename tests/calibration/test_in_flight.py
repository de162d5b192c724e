"""Observers see trajectories while these are drawn: what they would have seen of the records, to the bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, HeunDiscreteScheduler, UNet2DModel
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from examples import examples
from qdiff_fx import prepare_qdiff
from qdiff_fx.calibration import CalibrationData, calibrate, collect_calibration_data, kept, plan
from qdiff_fx.calibration.in_flight import InFlight, ShownCalls
from qdiff_fx.calibration.recorder import TrajectoryRecorder
from qdiff_fx.errors import ArtifactError, CalibrationError
from qdiff_fx.observers import Observer

EXAMPLE = {"sample": torch.zeros(2, 1, 8, 8), "timestep": torch.tensor([500, 500])}
RUNS, STEPS = 3, 4
ALL = ShownCalls(RUNS, STEPS, None, 2)
SOME = ShownCalls(RUNS, STEPS, 2 * STEPS, 2)


@pytest.fixture(autouse=True)
def in_twos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two samples are drawn together, and statistics are kept after every run."""
    monkeypatch.setattr(plan, "GROUP", 2)
    monkeypatch.setattr(kept, "APART", 0.0)
    monkeypatch.setattr(kept, "SHARE", 1e9)


def make_unet() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(8,),
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
            norm_num_groups=4,
        ).eval()


@pytest.fixture
def unet() -> nn.Module:
    return make_unet()


@cache
def prepared_once() -> nn.Module:
    return prepare_qdiff(make_unet(), None, EXAMPLE)


def prepared() -> nn.Module:
    """One that has seen nothing yet."""
    return copy.deepcopy(prepared_once())


def collect(unet: nn.Module, **options: Any) -> CalibrationData:
    given = {"scheduler": DDIMScheduler(), "num_samples": 5, "num_inference_steps": STEPS, "seed": 5, **options}
    return collect_calibration_data(unet, progress=False, **given)


def seen(network: nn.Module) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": buffer.clone()
        for name, each in network.named_modules()
        if isinstance(each, Observer)
        for key, buffer in each.named_buffers()
    }


def afterwards(data: CalibrationData, shown: ShownCalls = ALL, records: int = STEPS) -> dict[str, Any]:
    """What observers see of the records, once all have been drawn."""
    network = prepared()
    calls = [data[at] for at in range(len(data)) if shown.shows(at // records, at % records)]
    calibrate(network, calls, progress=False)
    return seen(network)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("shown", [ALL, SOME])
def test_they_see_what_the_records_would_have_shown_them(unet: nn.Module, shown: ShownCalls) -> None:
    network, calls = prepared(), list[int]()
    network.register_forward_pre_hook(lambda module, args: calls.append(1))
    observing = InFlight(network, shown)
    data = collect(unet, observing=observing)
    assert observing.possible
    assert len(calls) == shown.calls
    assert "forward" not in vars(unet)
    assert_same(seen(network), afterwards(data, shown))


def test_the_last_call_of_a_trajectory_is_seen_whoever_counts_its_steps(unet: nn.Module) -> None:
    """Heun's method calls the network nearly twice as often as it has steps."""
    observing = InFlight(network := prepared(), ShownCalls(1, 2, None, 2))
    data = collect(unet, observing=observing, scheduler=HeunDiscreteScheduler(), num_samples=2, every=3)
    assert float(data[-1]["timestep"][0]) == 0
    assert_same(seen(network), afterwards(data, records=len(data)))


def test_where_timesteps_are_none_of_a_schedule_they_see_nothing_yet(unet: nn.Module) -> None:
    observing = InFlight(network := prepared(), ALL)
    before = seen(network)
    collect(unet, observing=observing, scheduler=DDIMScheduler(num_train_timesteps=20))
    assert observing.possible is False
    assert_same(seen(network), before)


def killed_after(runs: int) -> Callable[..., Any]:
    """A recorder that fails in the run after so many."""
    finished = []

    def see(self: TrajectoryRecorder, inputs: dict[str, Any], original: Any = TrajectoryRecorder._see) -> None:
        original(self, inputs)
        if self._calls == 3:
            finished.append(self)
            if len(finished) > runs:
                raise KeyboardInterrupt

    return see


@pytest.mark.parametrize("lost", ["nothing", "statistics", "records"])
@pytest.mark.parametrize("runs", [0, 1, 2])
def test_goes_on_to_the_same_end(
    unet: nn.Module, lost: str, runs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, statistics = tmp_path / "records", tmp_path / "statistics"
    whole = InFlight(network := prepared(), SOME)
    data = collect(unet, observing=whole)
    killed = InFlight(prepared(), SOME, statistics)
    with monkeypatch.context() as patch:
        patch.setattr(TrajectoryRecorder, "_see", killed_after(runs))
        with pytest.raises(KeyboardInterrupt):
            collect(unet, observing=killed, resume_dir=records)
    if lost == "statistics":
        (statistics / "statistics.safetensors").unlink(missing_ok=True)
    if lost == "records" and runs:
        (records / f"samples-{2 * (runs - 1):06d}" / "calibration.safetensors").unlink()
    once_more = InFlight(prepared(), SOME, statistics)
    with monkeypatch.context() as patch:
        patch.setattr(TrajectoryRecorder, "_see", killed_after(0))  # goes over what is known, and is killed again
        with pytest.raises(KeyboardInterrupt):
            collect(unet, observing=once_more, resume_dir=records)
    again = prepared()
    found = collect(unet, observing=InFlight(again, SOME, statistics), resume_dir=records)
    assert_same(seen(again), seen(network))
    assert [float(batch["sample"].sum()) for batch in found] == [float(batch["sample"].sum()) for batch in data]


def test_statistics_of_other_trajectories_are_refused(unet: nn.Module, tmp_path: Path) -> None:
    collect(unet, observing=InFlight(prepared(), SOME, tmp_path))
    with pytest.raises(ArtifactError, match="begun with another set of batches"):
        collect(unet, observing=InFlight(prepared(), SOME, tmp_path), seed=6)
    with pytest.raises(ArtifactError, match="begun with another set of batches"):
        collect(unet, observing=InFlight(prepared(), ALL, tmp_path))


def test_a_network_that_gives_no_numbers_is_left_as_it_was(unet: nn.Module) -> None:
    observing = InFlight(prepare_qdiff(unet, None, EXAMPLE), ALL)
    with torch.no_grad():
        unet.conv_out.bias.fill_(torch.nan)
    with pytest.raises(CalibrationError, match="the network gives NaN"):
        collect(unet, observing=observing)
    assert "forward" not in vars(unet)


@given(st.integers(1, 12), st.integers(1, 30), st.integers(1, 400), st.integers(1, 8))
@examples(200)
def test_as_few_calls_as_hold_the_rows_and_no_timestep_left_out(runs: int, records: int, rows: int, each: int) -> None:
    shown = ShownCalls(runs, records, rows, each)
    at = [sum(shown.shows(run, record) for run in range(runs)) for record in range(records)]
    assert sum(at) == shown.calls
    assert max(at) - min(at) <= 1
    assert sum(at) * each >= min(rows, runs * records * each)
    assert all(calls == runs or (calls - 1) * each < -(-rows // records) for calls in at)
    assert min(at) > 0 or rows < records
