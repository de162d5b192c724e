import pytest
import torch
from listener import Listener
from torch import nn

from qdiff_fx.calibration import CalibrationData, calibrate, kept
from qdiff_fx.errors import ArtifactError, CalibrationError, InputError
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


class TestResuming:
    BATCHES = (batch(-1.0, 5), batch(2.0, 60), batch(3.0, 70))

    @pytest.fixture(autouse=True)
    def after_every_batch(self, monkeypatch):
        monkeypatch.setattr(kept, "APART", 0.0)
        monkeypatch.setattr(kept, "SHARE", 1e9)

    def test_goes_on_behind_the_last_batch_that_was_kept(self, tmp_path):
        interrupted, whole = Prepared(), Prepared()
        interrupted.register_forward_pre_hook(self.stop_at(3))
        with pytest.raises(KeyboardInterrupt):
            calibrate(interrupted, self.BATCHES, resume_dir=tmp_path, progress=False)
        resumed, listener = Prepared(), Listener()
        calibrate(resumed, self.BATCHES, resume_dir=tmp_path, progress=listener)
        calibrate(whole, self.BATCHES, progress=False)
        assert len(resumed.had_gradients) == 1
        assert listener.heard == [("calibrating", 3, "batch"), ("skip", 2), ("advance", 1), ("end",)]
        for name, buffer in whole.named_buffers():
            assert torch.equal(buffer, resumed.get_buffer(name)), name

    def test_a_range_of_timesteps_that_was_found_is_kept(self, tmp_path):
        data = [batch(-1.0, -0.5), batch(2.0, 0.25)]
        calibrate(Prepared(), data, resume_dir=tmp_path, progress=False)
        resumed = Prepared()
        calibrate(resumed, data, resume_dir=tmp_path, progress=False)
        assert not resumed.had_gradients
        assert resumed.observer.schedule.span == (-0.5, 0.25)

    def test_other_batches_and_other_networks_are_refused(self, tmp_path):
        calibrate(Prepared(), self.BATCHES, resume_dir=tmp_path, progress=False)
        with pytest.raises(ArtifactError, match=r"begun with another set of batches\. Give"):
            calibrate(Prepared(), self.BATCHES[:2], resume_dir=tmp_path, progress=False)
        other = Prepared()
        with torch.no_grad():
            other.weight += 1
        with pytest.raises(ArtifactError, match="begun with another network"):
            calibrate(other, self.BATCHES, resume_dir=tmp_path, progress=False)
        with pytest.raises(CalibrationError, match="resume_dir: batches that come one by one"):
            calibrate(Prepared(), iter(self.BATCHES), resume_dir=tmp_path, progress=False)

    def stop_at(self, call):
        calls = []

        def hook(module, args):
            calls.append(1)
            if len(calls) == call:
                raise KeyboardInterrupt

        return hook
