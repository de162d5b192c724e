"""Timesteps that are no steps of a training schedule: log σ, a time in [0, 1]; and calls outside of either."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qdiff_fx import (
    QDiffConfig,
    convert_qdiff,
    load_prepared,
    load_qdiff,
    merge_prepared,
    prepare_qdiff,
    round_weights,
    save_prepared,
    save_qdiff,
)
from qdiff_fx.calibration import CalibrationData, calibrate
from qdiff_fx.calibration.schedule import settle_schedule
from qdiff_fx.errors import CalibrationError, ConfigError, InputError
from qdiff_fx.observers import TimestepObserver
from qdiff_fx.signature.inputs import as_timestep

X = torch.linspace(-1, 1, 2 * 3 * 16).reshape(2, 3, 4, 4)
C_NOISE = [1.1, 0.2, -0.7, -1.6]
CONFIG = QDiffConfig(timestep_bins=4, act_range="minmax", weight_range="max")


class Preconditioned(nn.Module):
    """The smaller the noise, the larger what its layer reads."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, c_noise):
        return self.layer(x * torch.exp(-2 * c_noise)[:, None, None, None])


def batches(timesteps=C_NOISE):
    return [{"x": X, "c_noise": torch.full((2,), t)} for t in timesteps]


def prepared(config=CONFIG, timesteps=C_NOISE):
    network = prepare_qdiff(Preconditioned().eval(), config, batches()[0])
    calibrate(network, batches(timesteps), progress=False)
    return network


@pytest.fixture(scope="module")
def network():
    return prepared()


class TestLogSigma:
    def test_each_part_of_what_was_seen_has_scales_of_its_own(self, network):
        low, high = network.qconfig.timestep_range
        assert (low, high) == (pytest.approx(-1.6), pytest.approx(1.1))
        observer = next(each for each in network.modules() if isinstance(each, TimestepObserver))
        assert observer.count.tolist() == [X.numel()] * 4
        quantized = convert_qdiff(network, "reference")
        exact, at_once = Preconditioned(), convert_qdiff(prepared(QDiffConfig(act_granularity="tensor")), "reference")
        t = torch.full((2,), 1.1)
        error = [(each(X, t) - exact(X, t)).abs().max() for each in (quantized, at_once)]
        assert error[0] < error[1] / 4

    @pytest.mark.parametrize("backend", ["reference", "native"])
    def test_it_is_saved_and_calls_of_several_parts_are_cut(self, network, backend, tmp_path):
        quantized = convert_qdiff(network, backend)
        loaded = load_qdiff(save_qdiff(quantized, tmp_path / "net"), backend)
        mixed = loaded(X, torch.tensor([-1.5, 1.0]))
        for row, t in enumerate([-1.5, 1.0]):
            assert torch.equal(mixed[row : row + 1], quantized(X[row : row + 1], t))
        again = load_prepared(save_prepared(network, tmp_path / "prepared"))
        assert again.qconfig == network.qconfig
        assert torch.equal(convert_qdiff(again, backend)(X, 0.3), quantized(X, 0.3))

    def test_another_configuration_keeps_the_range(self, network):
        other = network.with_config(QDiffConfig(timestep_bins=4, weight_bits=4))
        assert other.qconfig.timestep_range == network.qconfig.timestep_range

    def test_weights_are_rounded_along_it(self):
        network = prepared()
        round_weights(network, batches(), progress=False)
        assert network.decided.weight_rounding == "second_order"
        assert convert_qdiff(network, "reference").qconfig.timestep_range == network.qconfig.timestep_range

    def test_batches_may_come_one_by_one_and_in_any_order(self, network):
        other = prepare_qdiff(Preconditioned().eval(), CONFIG, batches()[0])
        calibrate(other, iter(batches(C_NOISE[::-1])), progress=False)
        assert torch.equal(convert_qdiff(other, "reference")(X, 0.3), convert_qdiff(network, "reference")(X, 0.3))

    def test_a_second_calibration_stays_in_the_range_of_the_first(self):
        network = prepared()
        calibrate(network, batches([0.5]), progress=False)
        with pytest.raises(CalibrationError, match=r"1\.5 is outside the range \[-1\.6, 1\.1\].*timestep_range"):
            calibrate(network, batches([1.5]), progress=False)

    def test_calibrations_over_other_ranges_are_merged_only_where_the_range_was_given(self, network):
        with pytest.raises(CalibrationError, match=r"over the range \[-1\.6, 1\.1\] and .*Set timestep_range"):
            merge_prepared(network, prepared(timesteps=[0.5, -0.5]))
        config = QDiffConfig(timestep_bins=4, timestep_range=(-2, 2))
        merged = merge_prepared(*(prepared(config, part) for part in (C_NOISE[:2], C_NOISE[2:])))
        assert merged.qconfig == config


@pytest.mark.parametrize(
    ("timesteps", "found"),
    [
        ([0.999, 0.5, 0.001], True),
        ([-4.0, 4.5], True),
        ([1095.5, 600.3, -240.0], True),
        ([1095.5], True),
        ([0.5, 0.5], False),
        ([999.5, 428.57, 0.5], False),
        ([0.5, 428.57], False),
        ([1000.0, 0.5], False),
        ([30.0, 2.5, 0.5], False),
        ([-1.0, 3.0], False),
        ([4000.0, 1.0], False),
        ([torch.nan, -0.5], False),
    ],
)
def test_what_shows_that_timesteps_are_of_a_training_schedule(timesteps, found):
    network = nn.ModuleList([TimestepObserver(25, 1000)])
    given = [{"sample": X, "timestep": torch.tensor(t)} for t in timesteps]
    assert list(settle_schedule(network, iter(given))) == given
    assert (network[0].schedule.span is not None) == found


def test_another_length_of_the_schedule_is_known_from_what_was_recorded():
    network = nn.ModuleList([TimestepObserver(25, 1000)])
    given = [{"sample": X, "timestep": torch.tensor(t)} for t in (1999, 1000, 1)]
    settle_schedule(network, CalibrationData(given, {"num_train_timesteps": 2000}))
    assert network[0].schedule.ends == (0, 2000)


class TestCallsOutsideOfIt:
    """They are refused; a little past the end of a measured range, the nearest bin serves."""

    def test_of_a_range(self, network):
        quantized = convert_qdiff(network, "reference")
        at_the_end = quantized(X, 1.1)
        assert at_the_end.isfinite().all()
        assert quantized(X, 3.5).isfinite().all()
        for wrong in (torch.nan, torch.inf, 1e9, -5.0, torch.tensor([0.5, torch.nan])):
            with pytest.raises(InputError, match=r"'c_noise': timestep .* outside the range \[-1\.6, 1\.1\]"):
                quantized(X, wrong)

    @pytest.mark.parametrize("granularity", ["tensor", "timestep"])
    @pytest.mark.parametrize("backend", ["reference", "native"])
    def test_of_a_training_schedule(self, granularity, backend):
        config = QDiffConfig(act_granularity=granularity, num_train_timesteps=100, timestep_bins=2)
        quantized = convert_qdiff(prepared(config, [0.0, 99.5]), backend)
        for same in (
            7,
            7.0,
            torch.tensor(7),
            torch.tensor([7, 7], dtype=torch.int32),
            torch.tensor([7.0, 7.0]).double(),
        ):
            assert torch.equal(quantized(X, same), quantized(X, 7))
        assert torch.equal(quantized(X[:1], 100), quantized(X, torch.tensor([100, 3]))[:1])
        for wrong in (torch.nan, torch.inf, 1e9, -1, 101, torch.tensor([7.0, torch.nan])):
            with pytest.raises(InputError, match=r"'c_noise': timestep .* outside the schedule \[0, 100\].*sampler"):
                quantized(X, wrong)
        for unreal in (True, torch.tensor(True), torch.tensor([7j, 7j])):
            with pytest.raises(InputError, match="a timestep cannot be a"):
                quantized(X, unreal)


@pytest.mark.parametrize("bad", [(1.0,), (2.0, 1.0), (0.0, 0.0), (0.0, torch.inf), (0, True), "01", 3])
def test_ranges_that_are_none(bad):
    with pytest.raises(ConfigError, match="timestep_range"):
        QDiffConfig(timestep_range=bad)


def test_a_configuration_with_a_range_is_kept_and_one_without_is_as_before():
    config = QDiffConfig(timestep_range=(-1, 2), timestep_bins=2000)
    assert QDiffConfig.from_json(config.to_json()) == config
    assert "timestep_range" not in QDiffConfig().to_json()


class TestBatches:
    def test_sizes_may_differ_and_come_from_a_generator(self):
        network = prepare_qdiff(Preconditioned().eval(), CONFIG, batches()[0])
        sizes = [X, X[:1], X.repeat(3, 1, 1, 1)]
        calibrate(network, ({"x": each, "c_noise": torch.tensor(5.0)} for each in sizes), progress=False)
        observer = next(each for each in network.modules() if isinstance(each, TimestepObserver))
        assert observer.count.sum() == sum(each.numel() for each in sizes)

    def test_optional_arguments_may_be_none(self, network):
        class WithMask(Preconditioned):
            def forward(self, x, c_noise, mask=None):
                return super().forward(x if mask is None else x * mask, c_noise)

        given = [{**batch, "mask": None} for batch in batches()]
        network = prepare_qdiff(WithMask().eval(), CONFIG, given[0])
        calibrate(network, CalibrationData(given), progress=False)
        calibrate(network, given, progress=False)
        assert network.qconfig.timestep_range == pytest.approx((-1.6, 1.1))

    def test_what_records_nothing_is_refused(self, network):
        with pytest.raises(CalibrationError, match="Conv2d: it has no observers"):
            calibrate(nn.Conv2d(3, 3, 1), batches(), progress=False)
        with pytest.raises(CalibrationError, match="QuantizedUNet: it has no observers"):
            calibrate(convert_qdiff(network), batches(), progress=False)
        with pytest.raises(CalibrationError, match="argument 'x': it holds no samples"):
            calibrate(network, [{"x": X[:0], "c_noise": torch.zeros(0)}], progress=False)
        with pytest.raises(CalibrationError, match="no batches"):
            calibrate(network, iter([]), progress=False)
        with pytest.raises(CalibrationError, match="batch 0: it is a str"):
            calibrate(network, batches()[0], progress=False)


@pytest.mark.parametrize(("value", "dtype"), [(1e30, torch.int64), (2**40, torch.int32), (-(2.0**40), torch.int32)])
def test_timesteps_that_a_whole_number_cannot_hold(value, dtype):
    with pytest.raises(InputError, match="argument 't': timestep .* does not fit int"):
        as_timestep(value, "t", dtype, 2, X.device)
