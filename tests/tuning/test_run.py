"""Sensitivity, size and the whole of `tune` on a network small enough to check by hand."""

from __future__ import annotations

import json

import pytest
import torch
from in_threads import in_threads
from tiny_graphs import Shortcut, prepare, prepared

from qdiff_fx import QDiffConfig, calibrate, convert_qdiff, merge_prepared, save_qdiff, tune
from qdiff_fx.errors import CalibrationError, ConfigError
from qdiff_fx.ir.facts import layer_info, quantized_layers
from qdiff_fx.quant.numerics import sqnr_db
from qdiff_fx.storage.artifact import artifact_bytes
from qdiff_fx.tuning.choice import AS_CONFIGURED, FLOAT, Choice
from qdiff_fx.tuning.latency import BYTES, NIBBLES, WIDE
from qdiff_fx.tuning.layer_substitution import LayerSubstitution
from qdiff_fx.tuning.run import probe_batches, share_sensitivity
from qdiff_fx.tuning.size import fixed_bytes
from qdiff_fx.tuning.units import convert_as, units_of, with_choices

STEPS = (900, 480, 20)
BITS = (2, 4, 8)


def batch(timestep: int) -> dict[str, torch.Tensor]:
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(timestep))
    return {"x": x, "t": torch.full((4,), float(timestep))}


BATCHES = [batch(timestep) for timestep in STEPS]


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return Shortcut().eval()


@pytest.fixture(scope="module")
def network(unet):
    found = prepared(unet, *BATCHES[0].values(), calibrated=False, timestep_bins=10)
    calibrate(found, BATCHES, progress=False)
    return found


@pytest.fixture(scope="module")
def tuned(network, tmp_path_factory):
    budget = fixed_bytes(network, units_of(network.graph_module)) + 2000
    file = tmp_path_factory.mktemp("tune") / "sensitivity.json"
    return tune(network, BATCHES, target_size=budget, bits=BITS, probe_steps=3, sensitivity=file, progress=False), file


def test_the_parts_of_a_split_layer_are_one_unit(network):
    units = {unit.path: unit for unit in units_of(network.graph_module)}
    assert len(units["shortcut"].layers) == 2
    assert units["shortcut"].counts == (16 * 16, 16 * 16)
    assert units["scaled_dot_product_attention"].counts == ()
    assert units["shortcut"].bytes_at(Choice(2)) == 2 * 16 * 16 // 4


@pytest.mark.parametrize("path", ["conv_in", "shortcut", "to_k", "scaled_dot_product_attention"])
@pytest.mark.parametrize("choice", [Choice(2), Choice(8), Choice(8, wide=True)], ids=str)
def test_a_swapped_layer_is_what_it_is_in_a_network_quantized_there_alone(unet, network, path, choice):
    """The noise measured equals that of a network whose other layers stay in float."""
    units = units_of(network.graph_module)
    unit = next(each for each in units if each.path == path)
    choice = choice if unit.widens or (unit.counts and not choice.wide) else AS_CONFIGURED
    choices = {each.path: choice if each is unit else FLOAT for each in units}
    graph = convert_as(network, with_choices(network.qconfig, units, choices))
    tensors = list(BATCHES[1].values())
    run = LayerSubstitution(network).on(tensors)
    with torch.no_grad():
        torch.testing.assert_close(run.prediction, unet(*tensors))
        torch.testing.assert_close(run.with_quantized(unit, choice), graph(*tensors)[0])


def test_converting_again_equals_preparing_again(unet, network, tuned):
    config = tuned[0].config
    fresh = prepare(unet, config, BATCHES[0])
    calibrate(fresh, BATCHES, progress=False)
    again = convert_as(network, config)
    tensors = list(BATCHES[0].values())
    with torch.no_grad():
        torch.testing.assert_close(again(*tensors)[0], convert_qdiff(fresh, "reference")(*tensors), rtol=0, atol=0)


def test_edges_are_edges_in_an_observed_graph_too(unet):
    """What is planned anew is what was planned: more bits for the sample, the first and the last layer."""
    config = QDiffConfig(weight_bits=4, timestep_bins=10)
    network = prepare(unet, config, BATCHES[0])
    calibrate(network, BATCHES, progress=False)
    again = convert_as(network, config)
    tensors = list(BATCHES[0].values())
    with torch.no_grad():
        torch.testing.assert_close(again(*tensors)[0], convert_qdiff(network, "reference")(*tensors), rtol=0, atol=0)
    bits = {layer_info(node).path: layer_info(node) for node in quantized_layers(again)}
    assert (bits["conv_in"].act_bits, bits["conv_in"].weight_bits, bits["conv_out"].weight_bits) == (16, 8, 8)


def test_the_saved_folder_is_as_small_as_promised(unet, tuned, tmp_path):
    fresh = prepare(unet, tuned[0].config, BATCHES[0])
    calibrate(fresh, BATCHES, progress=False)
    save_qdiff(convert_qdiff(fresh, "reference"), tmp_path / "net")
    actual = artifact_bytes(tmp_path / "net")
    assert actual <= tuned[0].bytes
    assert tuned[0].bytes - actual < 200 * len(tuned[0].choices)
    assert len(set(tuned[0].choices.values())) > 1, "all layers got the same bits: the budget chose nothing"


def test_better_than_random_choices_of_the_same_size(network, tuned):
    """Measured on the networks themselves, not by the model of the noise."""
    found, units = tuned[0], units_of(network.graph_module)
    budget = sum(found.menu[path][choice].bytes for path, choice in found.choices.items())
    generator = torch.Generator().manual_seed(7)
    others = []
    while len(others) < 6:
        numbers = torch.randint(3, (len(units),), generator=generator).tolist()
        drawn = {u.path: Choice(BITS[n]) if u.counts else AS_CONFIGURED for u, n in zip(units, numbers, strict=True)}
        if 0.8 * budget <= sum(u.bytes_at(drawn[u.path]) for u in units) <= budget:
            others.append(mean_sqnr(network, units, drawn))
    assert mean_sqnr(network, units, found.choices) > max(others)


def mean_sqnr(network, units, choices) -> float:
    graph = convert_as(network, with_choices(network.qconfig, units, choices))
    substitution = LayerSubstitution(network)
    ratios = []
    for timestep in STEPS:
        tensors = list(batch(timestep).values())
        with torch.no_grad():
            ratios.append(sqnr_db(substitution.float_graph(*tensors)[0], graph(*tensors)[0]))
    return sum(ratios) / len(ratios)


def test_a_kept_measurement_is_used_again_and_reproduces(network, tuned, monkeypatch):
    found, file = tuned
    monkeypatch.setattr("qdiff_fx.tuning.sensitivity.LayerSubstitution", None)  # nothing may be measured
    again = tune(network, BATCHES, target_size=found.bytes, bits=BITS, probe_steps=3, sensitivity=file, progress=False)
    assert again.config == found.config


def test_an_interrupted_measurement_goes_on(network, tuned, tmp_path):
    found, file = tuned
    data = json.loads(file.read_text())
    data["noise"] = [data["noise"][0], dict(list(data["noise"][1].items())[:2])]
    part = tmp_path / "part.json"
    part.write_text(json.dumps(data))
    tune(network, BATCHES, target_size=found.bytes, bits=BITS, probe_steps=3, sensitivity=part, progress=False)
    assert json.loads(part.read_text()) == json.loads(file.read_text())


@pytest.mark.parametrize("begun", [False, True])
def test_several_processes_measure_the_same(network, tuned, tmp_path, begun):
    measured, file = json.loads(tuned[1].read_text()), tmp_path / "shared.json"
    if begun:
        measured["noise"][1] = dict(list(measured["noise"][1].items())[:3])
        file.write_text(json.dumps({**measured, "noise": measured["noise"][:2]}))

    def share(workers):
        return share_sensitivity(
            network, BATCHES, bits=BITS, probe_steps=3, sensitivity=file, progress=False, workers=workers
        )

    assert in_threads(2, share) == [None, None]
    assert json.loads(file.read_text()) == json.loads(tuned[1].read_text())


def test_a_measurement_of_something_else_is_refused(network, tuned, tmp_path):
    found, file = tuned
    with pytest.raises(ConfigError, match="another network, configuration, choice of bits or"):
        tune(network, BATCHES, target_size=10**6, bits=(4, 8), sensitivity=file, probe_steps=3, progress=False)
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    with pytest.raises(ConfigError, match="no sensitivity file"):
        tune(network, BATCHES, target_size=found.bytes, sensitivity=broken, probe_steps=3, progress=False)
    with pytest.raises(ConfigError, match="timesteps"):
        tune(network, BATCHES[:1], target_size=found.bytes, bits=BITS, sensitivity=file, probe_steps=1, progress=False)


def test_a_measurement_of_other_numbers_is_refused(network, tuned, unet):
    again = {"target_size": tuned[0].bytes, "bits": BITS, "sensitivity": tuned[1], "probe_steps": 3, "progress": False}
    others = [{**each, "x": each["x"] + 1e-3} for each in BATCHES]
    with pytest.raises(ConfigError, match=r"or timesteps \(inputs\)"):
        tune(network, others, **again)
    seen_more = merge_prepared(network, network)
    with pytest.raises(ConfigError, match=r"or timesteps \(calibration\)"):
        tune(seen_more, BATCHES, **again)
    bias = unet.conv_out.bias.detach().clone()
    with torch.no_grad():
        unet.conv_out.bias.add_(1)
    try:
        with pytest.raises(ConfigError, match=r"or timesteps \(weights\)"):
            tune(network, BATCHES, **again)
    finally:
        with torch.no_grad():
            unet.conv_out.bias.copy_(bias)


def test_what_cannot_be_done_is_said_before_measuring(network, monkeypatch):
    monkeypatch.setattr("qdiff_fx.tuning.run.measure", None)
    with pytest.raises(ConfigError, match="the smallest is"):
        tune(network, BATCHES, target_size=1000, probe_steps=3, progress=False)
    with pytest.raises(ConfigError, match=r"\[9\] bits are not supported"):
        tune(network, BATCHES, target_size=10**6, bits=(4, 9), progress=False)
    with pytest.raises(ConfigError, match="nothing to aim at"):
        tune(network, BATCHES, progress=False)


def test_probes_are_spread_over_the_trajectory_and_never_mix_timesteps(network):
    assert [timestep for timestep, _ in probe_batches(network, BATCHES, 2, 1)] == [900.0, 20.0]
    assert all(len(tensors[0]) == 2 for _, tensors in probe_batches(network, BATCHES, 3, 2))
    mixed = [{"x": BATCHES[0]["x"], "t": torch.tensor([900.0, 20.0, 20.0, 20.0])}]
    with pytest.raises(CalibrationError, match="mixes timesteps"):
        probe_batches(network, mixed, 1, 4)


@pytest.mark.parametrize(
    "target", [{"target_latency": 60.0}, pytest.param({"target_latency_ratio": 1e6}, marks=pytest.mark.slow)]
)
def test_a_generous_latency_leaves_everything_in_float_that_may_stay(network, tuned, target, monkeypatch):
    monkeypatch.setattr("qdiff_fx.tuning.latency.ROUNDS", 2)  # any time will do
    monkeypatch.setattr("qdiff_fx.tuning.timing.FEWEST", 2)
    monkeypatch.setattr("qdiff_fx.tuning.timing.MOST", 2)
    found = tune(
        network,
        BATCHES,
        **target,
        bits=BITS,
        allow_float=True,
        probe_steps=3,
        backend="reference",
        sensitivity=tuned[1],
        progress=False,
    )
    assert set(found.choices.values()) == {FLOAT}
    assert 0 < found.seconds < 60
    assert 0 < found.configured_seconds < 60


def test_a_share_of_the_latency_is_of_the_network_as_configured(network, tuned, monkeypatch):
    """On a machine where the configured network takes three seconds, and every layer in float one more."""
    made = []

    class Yardstick:
        def __init__(self, make, tensors):
            made.append(make())
            self.seconds = 3.0

        def __call__(self, make):
            made.append(make())
            return self.seconds + self.floats()

        def floats(self):
            return sum(rule.quantize is False for rule in made[-1].qconfig.rules)

    class Lowered:
        def __init__(self, config):
            self.module = self
            self.qconfig = config

    layers = {
        unit.path: dict.fromkeys((NIBBLES, BYTES, WIDE), 0.0) | {FLOAT: 1.0} for unit in units_of(network.graph_module)
    }
    monkeypatch.setattr("qdiff_fx.tuning.run.Yardstick", Yardstick)
    monkeypatch.setattr("qdiff_fx.tuning.run.measure_layers", lambda *_: layers)
    monkeypatch.setattr("qdiff_fx.tuning.run.convert_as", lambda _, config: config)
    monkeypatch.setattr("qdiff_fx.tuning.run.get_backend", lambda _: LowersNothing(Lowered))
    found = tune(
        network,
        BATCHES,
        target_latency_ratio=2.0,
        bits=BITS,
        allow_float=True,
        probe_steps=3,
        sensitivity=tuned[1],
        progress=False,
    )
    assert made[0].qconfig.rules == network.qconfig.rules
    assert list(found.choices.values()).count(FLOAT) == 3
    assert (found.seconds, found.configured_seconds) == (6.0, 3.0)


class LowersNothing:
    def __init__(self, lowered):
        self.lower = lowered
