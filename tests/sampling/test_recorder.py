"""What is recorded of a run that somebody else drives has the names and the roles of the network's own arguments."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qdiff_fx.calibration import calibrate, collect_calibration_data
from qdiff_fx.errors import CalibrationError
from qdiff_fx.observers import TimestepObserver
from qdiff_fx.sampling import trajectory
from qdiff_fx.sampling.recorder import as_trajectory, recording, watching

X, C, T = torch.zeros(2, 1, 4, 4), torch.tensor([1.0, 2.0]), torch.tensor([30, 30])


class LabelSecond(nn.Module):
    config = {"in_channels": 1, "sample_size": 4}

    def forward(self, x, c, t):
        return x + c.view(-1, 1, 1, 1) + t.view(-1, 1, 1, 1) / 1000


def test_a_trajectory_knows_its_timestep_behind_the_label() -> None:
    network = LabelSecond()
    with recording(network) as calls:
        final = network(X, C, T)
    walked = as_trajectory(calls, final)
    assert torch.equal(walked.steps[0].timestep, T)
    assert walked.conditioning.keys() == {"c"}
    assert torch.equal(walked.steps[0].eps, final)


def test_recorded_data_are_told_apart_by_the_timestep_behind_the_label() -> None:
    from diffusers import DDIMScheduler

    data = collect_calibration_data(
        LabelSecond(), scheduler=DDIMScheduler(), num_samples=2, num_inference_steps=4, batch_size=2, seed=0,
        inputs={"c": C}, progress=False,
    )  # fmt: skip
    assert [batch["t"].tolist() for batch in data] == [[t, t] for t in (750, 500, 250, 0)]
    assert [batch["t"][0].item() for batch in data.select("last", 1)] == [0]
    assert len(list(data.batches(2))) == 4


def test_calls_are_kept_as_long_as_it_is_watched() -> None:
    network = LabelSecond()
    with recording(network) as calls:
        network(X, C, T)
        network(X, C, t=T)
    network(X, C, T)
    assert len(calls) == 2
    assert not network._forward_hooks
    assert not network._forward_pre_hooks


def test_inputs_are_seen_before_the_network_can_change_them() -> None:
    network, seen = LabelSecond(), []
    with watching(network, before=lambda inputs: seen.append(list(inputs))):
        network(X, C, t=T)
    assert seen == [["x", "c", "t"]]


def test_more_arguments_than_names_are_refused() -> None:
    class Any(nn.Module):
        def forward(self, *args):
            return args[0]

    network = Any()
    with pytest.raises(CalibrationError, match="4 positional arguments"), recording(network):
        network(X, T, C, C)


class LabelsBetween(LabelSecond):
    """The labels may be left out, and stand where most networks take the timestep."""

    def forward(self, x, labels=None, t=None):
        return super().forward(x, torch.zeros(len(x)) if labels is None else labels, t)


class Prepared(LabelsBetween):
    def __init__(self) -> None:
        super().__init__()
        self.observer = TimestepObserver(4, 100)

    def forward(self, x, labels=None, t=None):
        return self.observer(super().forward(x, labels, t), t)


@pytest.mark.parametrize("conditioning", [{}, {"labels": C}])
def test_labels_before_the_timestep_are_not_taken_for_it(conditioning) -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(num_train_timesteps=100)
    scheduler.set_timesteps(4)
    walked = trajectory(LabelsBetween(), scheduler, X, **conditioning)
    with torch.no_grad():
        expected = LabelsBetween()(X, t=torch.tensor(75), **conditioning)
    assert torch.equal(walked.steps[0].eps, expected)
    batches = list(walked.batches())
    assert batches[0].keys() == {"x", "t", *conditioning}
    prepared = Prepared()
    calibrate(prepared, batches, progress=False)
    assert prepared.observer.count.tolist() == [X.numel()] * 4


def test_a_run_of_somebody_elses_loop_keeps_the_networks_names() -> None:
    network = LabelSecond()
    with recording(network) as calls:
        final = network(X, C, T)
    assert [batch.keys() for batch in as_trajectory(calls, final).batches()] == [{"x", "c", "t"}]
