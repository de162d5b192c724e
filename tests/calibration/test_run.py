import pytest
import torch
from torch import nn

from qdiff_fx.calibration import CalibrationData, calibrate
from qdiff_fx.errors import CalibrationError, InputError
from qdiff_fx.observers import TimestepObserver


class Prepared(nn.Module):
    """The smallest thing that behaves like a prepared network."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.observer = TimestepObserver(4, 100, name="conv_in input")
        self.had_gradients: list[bool] = []

    def forward(self, sample, timestep):
        if sample.shape[1] != 1:
            raise InputError("expected 1 channel", where="sample")
        self.had_gradients.append((sample * self.weight).requires_grad)
        return self.observer(sample, timestep)


def batch(value=1.0, timestep=5):
    return {"sample": torch.full((2, 1, 3, 3), value), "timestep": torch.full((2,), timestep)}


def test_observers_see_every_batch_without_gradients():
    prepared = Prepared()
    calibrate(prepared, [batch(-1.0, 5), batch(2.0, 60)], progress=False)
    assert prepared.observer.count.tolist() == [18, 0, 18, 0]
    assert prepared.had_gradients == [False, False]


def test_takes_recorded_data_and_generators_and_adds_up():
    prepared = Prepared()
    data = CalibrationData([batch(-1.0, 5), batch(2.0, 60)])
    calibrate(prepared, data, progress=False)
    calibrate(prepared, data.batches(1), progress=False)
    assert prepared.observer.count.tolist() == [36, 0, 36, 0]


def test_progress_goes_to_stderr(capsys):
    calibrate(Prepared(), [batch()])
    captured = capsys.readouterr()
    assert "calibrating" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_non_finite_inputs(bad):
    prepared = Prepared()
    with pytest.raises(CalibrationError, match="batch 1, argument 'sample': it holds NaN or infinity"):
        calibrate(prepared, [batch(), batch(bad)], progress=False)
    assert prepared.observer.count.sum() == 18


def test_the_end_of_the_schedule_belongs_to_it():
    """Samplers of flow matching begin there."""
    prepared = Prepared()
    calibrate(prepared, [batch(timestep=100)], progress=False)
    assert prepared.observer.count.nonzero().tolist() == [[3]]


@pytest.mark.parametrize("timestep", [-1, 101, 999])
def test_timesteps_outside_the_schedule(timestep):
    message = rf"batch 0, argument 'timestep': timestep {timestep} is outside the schedule \[0, 100\]\. Set num_train"
    with pytest.raises(CalibrationError, match=message):
        calibrate(Prepared(), [batch(timestep=timestep)], progress=False)


def test_timestep_as_a_number():
    prepared = Prepared()
    calibrate(prepared, [{"sample": torch.ones(2, 1), "timestep": 5}], progress=False)
    assert prepared.observer.count.tolist() == [2, 0, 0, 0]


def test_arguments_that_are_no_tensors_are_the_networks_business():
    class Scaled(Prepared):
        def forward(self, sample, timestep, options):
            return super().forward(sample * options["scale"], timestep)

    prepared = Scaled()
    calibrate(prepared, [{**batch(2.0), "options": {"scale": 3.0}}], progress=False)
    assert prepared.observer.max_val[0] == 6


def test_no_batches():
    with pytest.raises(CalibrationError, match="no batches.*collect_calibration_data"):
        calibrate(Prepared(), [], progress=False)


def test_something_that_is_no_batch():
    with pytest.raises(CalibrationError, match="batch 0: it is a Tensor"):
        calibrate(Prepared(), [torch.zeros(2, 1)], progress=False)


def test_errors_of_the_network_say_in_which_batch():
    wrong = {"sample": torch.zeros(2, 3), "timestep": torch.zeros(2)}
    with pytest.raises(InputError, match="expected 1 channel") as caught:
        calibrate(Prepared(), [batch(), wrong], progress=False)
    assert caught.value.__notes__ == ["This happened in calibration batch 1."]
