"""Reconstruction as a whole: what it decides is better, arrives bit for bit, and is the same every time."""

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from residual_net import QUICK, Net, batches, make_prepared
from tiny_graphs import reference_for

from qdiff_fx import QDiffConfig, Reconstruction, convert_qdiff, load_qdiff, prepare_qdiff, reconstruct, save_qdiff
from qdiff_fx.checkpoint import Checkpoint
from qdiff_fx.errors import ArtifactError, CalibrationError, InputError
from qdiff_fx.ir.annotations import nodes_with
from qdiff_fx.ir.edit import get_attr_tensor, is_op
from qdiff_fx.ir.facts import LayerPlan, layer_id
from qdiff_fx.passes.quantize.measure import measure
from qdiff_fx.quant.numerics import sqnr_db
from qdiff_fx.reconstruction import learning
from qdiff_fx.reconstruction.adaround import Learner

dequantize = torch.ops.quantized_decomposed.dequantize_per_channel.default


def layer_codes(network):
    return {name: each.codes for name, each in network.decided.weights.items()}


@torch.no_grad()
def held_out_sqnr(network, quantized):
    test = batches(seed=2)
    pairs = [(network(**batch), quantized(**batch)) for batch in test]
    return sqnr_db(torch.stack([a for a, _ in pairs]), torch.stack([b for _, b in pairs]))


def test_it_beats_rounding_on_samples_it_never_saw():
    network = make_prepared(weight_bits=3)
    rounded = held_out_sqnr(network, convert_qdiff(network, "reference"))
    result = reconstruct(network, batches(), replace(QUICK, weight_steps=80), progress=False)
    assert isinstance(result, Reconstruction)
    assert held_out_sqnr(network, convert_qdiff(network, "reference")) > rounded + 1


def test_no_unit_ends_worse_than_it_began():
    result = reconstruct(make_prepared(), batches(), QUICK, progress=False)
    assert all(unit.after <= unit.before for unit in result.units)
    assert "block" in str(result)


def test_codes_in_the_saved_file_are_those_decided(tmp_path):
    network = make_prepared()
    before = {layer_id(node): node for node in nodes_with(network.graph_module, LayerPlan)}
    reconstruct(network, batches(), QUICK, progress=False)
    save_qdiff(convert_qdiff(network, "reference"), tmp_path / "net")
    loaded = load_qdiff(tmp_path / "net", "reference").graph_module
    stored = {
        str(node.args[0].target): get_attr_tensor(loaded, node.args[0])
        for node in loaded.graph.nodes
        if is_op(node, dequantize)
    }
    codes = layer_codes(network)
    assert len(codes) == len(stored) > 5
    for name, expected in codes.items():
        assert torch.equal(stored[f"{before[name].args[1].target}_codes"], expected), name


def test_scales_are_learned_with_the_step_sizes_and_arrive_with_the_codes():
    network = make_prepared()
    measured = measure(network.graph_module, network.qconfig).weights
    reconstruct(network, batches(), replace(QUICK, scale_rate=0.0), progress=False)
    assert all(each.scales.equal(measured[name].scales) for name, each in network.decided.weights.items())
    reconstruct(network, batches(), replace(QUICK, weight_steps=0, scale_rate=1e-2), progress=False)
    learned = network.decided.weights
    ratios = [each.scales / measured[name].scales for name, each in learned.items()]
    assert any((ratio != 1).any() for ratio in ratios)
    assert all(((ratio > 0.5) & (ratio < 2)).all() for ratio in ratios)
    graph = convert_qdiff(network, "reference").graph_module
    given = [get_attr_tensor(graph, node.args[1]) for node in graph.graph.nodes if is_op(node, dequantize)]
    assert all(any(scales.equal(each.scales) for scales in given) for each in learned.values())


def test_the_rate_of_the_weights_rises_along_a_line():
    rates = []
    step = Learner.step
    with mock.patch.object(Learner, "step", lambda self, rate, *rest: (rates.append(rate), step(self, rate, *rest))):
        config = replace(QUICK, weight_steps=4, act_steps=0, weight_rate=0.1, rate_growth=3.0, warm_up=0.9)
        reconstruct(make_prepared(), batches(), config, progress=False)
    assert set(np.round(rates, 6)) == {0.1, 0.15, 0.2, 0.25}


@pytest.mark.parametrize(("backend", "options"), [("native", {}), ("inductor", {"compile": False})])
def test_kernels_agree_with_the_reference_on_what_was_learned(backend, options):
    network = make_prepared()
    reconstruct(network, batches(), QUICK, progress=False)
    reference = convert_qdiff(network, "reference").with_backend("reference", reference_for(backend))
    kernels = convert_qdiff(network, backend, compute_dtype=torch.float32, **options)
    batch = batches(seed=2)[0]
    assert sqnr_db(reference(**batch), kernels(**batch)) > 40


def test_activation_tables_arrive_with_their_zero_points():
    network = make_prepared(timestep_bins=10)
    rounded = convert_qdiff(network, "reference").graph_module
    reconstruct(network, batches(), QUICK, progress=False)
    learned = convert_qdiff(network, "reference").graph_module
    tables = {name: tensor for name, tensor in learned.named_buffers() if name.startswith("timestep_tables")}
    before = dict(rounded.named_buffers())
    assert all(torch.equal(before[name], table) for name, table in tables.items() if "zero_point" in name)
    assert any(not torch.equal(before[name], table) for name, table in tables.items() if "zero_point" not in name)


def test_the_same_seed_gives_the_same_decisions_and_another_seed_others():
    first, second, other = make_prepared(), make_prepared(), make_prepared()
    config = replace(QUICK, head_start=0.0)  # so few steps would leave all weights where they have a start
    reconstruct(first, batches(), config, progress=False)
    reconstruct(second, batches(), config, progress=False)
    reconstruct(other, batches(), replace(config, seed=1), progress=False)
    assert first.decided == second.decided
    assert any(not torch.equal(codes, layer_codes(other)[name]) for name, codes in layer_codes(first).items())


@pytest.mark.parametrize(
    "without_gradients", [pytest.param(torch.no_grad, marks=pytest.mark.slow), torch.inference_mode]
)
def test_it_learns_where_gradients_are_off(without_gradients):
    expected, network, data = make_prepared(), make_prepared(), batches()
    reconstruct(expected, data, QUICK, progress=False)
    with without_gradients():
        reconstruct(network, data, QUICK, progress=False)
    assert network.decided == expected.decided


@pytest.mark.parametrize(
    ("config", "killed_at"),
    [
        pytest.param(config, killed_at, id=f"{name}-{killed_at}", marks=() if quick else pytest.mark.slow)
        for name, config, few in (("joint", QUICK, 2), ("paper", replace(QUICK, joint=False, objective="plain"), 0))
        for killed_at in (0, 2, 5)
        for quick in [killed_at == few]
    ],
)
def test_killed_and_resumed_ends_the_same(tmp_path, config, killed_at):
    whole, parts = make_prepared(), make_prepared()
    reconstruct(whole, batches(), config, progress=False)

    class Killed(Exception):
        pass

    learned = mock.Mock(side_effect=learning.learn_weights)

    def until_killed(*args):
        if learned.call_count == killed_at:
            raise Killed
        learned(*args)

    with mock.patch("qdiff_fx.reconstruction.unit.learn_weights", until_killed), pytest.raises(Killed):
        reconstruct(parts, batches(), config, resume_dir=tmp_path, progress=False)
    assert not parts.decided
    result = reconstruct(parts, batches(), config, resume_dir=tmp_path, progress=False)
    assert sum(unit.resumed for unit in result.units) >= killed_at
    assert whole.decided == parts.decided


def test_a_finished_run_is_read_back_without_learning(tmp_path):
    first, again = make_prepared(), make_prepared()
    reconstruct(first, batches(), QUICK, resume_dir=tmp_path, progress=False)
    with mock.patch("qdiff_fx.reconstruction.unit.learn_weights", side_effect=AssertionError):
        reconstruct(again, batches(), QUICK, resume_dir=tmp_path, progress=False)
    assert first.decided == again.decided


@pytest.mark.parametrize(
    ("what", "network", "data", "config"),
    [
        ("schedule", {}, {}, {"seed": 7}),
        ("quantization", {"weight_bits": 5}, {}, {}),
        ("set of samples", {}, {"seed": 3}, {}),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, what, network, data, config):
    reconstruct(
        make_prepared(), batches(), replace(QUICK, weight_steps=1, act_steps=0), resume_dir=tmp_path, progress=False
    )
    with pytest.raises(ArtifactError, match=what):
        reconstruct(
            make_prepared(**network),
            batches(**data),
            replace(QUICK, **({"weight_steps": 1, "act_steps": 0} | config)),
            resume_dir=tmp_path,
            progress=False,
        )


def test_a_damaged_checkpoint_names_its_file(tmp_path):
    reconstruct(make_prepared(), batches(), replace(QUICK, weight_steps=1), resume_dir=tmp_path, progress=False)
    (tmp_path / "unit-0000.safetensors").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match=r"unit-0000.*Delete this file"):
        reconstruct(make_prepared(), batches(), replace(QUICK, weight_steps=1), resume_dir=tmp_path, progress=False)


def test_a_run_killed_while_it_wrote_its_first_file_is_begun_again(tmp_path):
    (tmp_path / ".reconstruction.json.01234567.new").touch()
    Checkpoint(tmp_path, {"network": "a"})
    assert (tmp_path / "reconstruction.json").is_file()


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="something else"):
        reconstruct(make_prepared(), batches(), QUICK, resume_dir=tmp_path, progress=False)


def test_a_unit_that_diverges_keeps_its_rounded_weights_and_says_so(capsys):
    network, rounded = make_prepared(), make_prepared()
    reconstruct(rounded, batches(), replace(QUICK, weight_steps=0, act_steps=0), progress=False)
    result = reconstruct(network, batches(), replace(QUICK, bias_rate=1e30, act_steps=0), progress=True)
    assert result.fallbacks
    assert "the rounding" in capsys.readouterr().err
    kept = {unit.path for unit in result.fallbacks}
    assert "block" in kept
    for name, codes in layer_codes(rounded).items():
        if "block" in name:
            assert torch.equal(codes, layer_codes(network)[name])


def test_a_unit_that_hardly_matters_is_left_as_it_is():
    network, before = make_prepared(), make_prepared()
    reconstruct(before, batches(), replace(QUICK, weight_steps=0, act_steps=0), progress=False)
    result = reconstruct(network, batches(), replace(QUICK, typical_loss=1e9), progress=False)
    assert all(unit.before == unit.after for unit in result.units)
    assert network.decided == before.decided


def test_too_few_samples_are_refused():
    with pytest.raises(CalibrationError, match="fewer than one batch of 100"):
        reconstruct(make_prepared(), batches(), replace(QUICK, batch_size=100), progress=False)


def test_data_of_another_network_are_refused():
    wrong = [{"x": torch.randn(2, 5, 8, 8), "t": torch.tensor([1.0, 2.0])}]
    with pytest.raises(InputError):
        reconstruct(make_prepared(), wrong, QUICK, progress=False)


def test_data_that_miss_a_part_of_the_schedule_are_refused():
    with pytest.raises(CalibrationError, match=r"no sample has a timestep in \[0, 100\)"):
        reconstruct(make_prepared(), batches(timesteps=(500.0, 980.0)), QUICK, progress=False)


def test_a_network_that_was_not_calibrated_is_refused():
    network = prepare_qdiff(Net().eval(), QDiffConfig(), batches()[0])
    with pytest.raises(CalibrationError, match="saw no data"):
        reconstruct(network, batches(), QUICK, progress=False)


def test_a_cache_too_small_for_a_batch_is_refused_and_a_small_one_takes_fewer_samples():
    with pytest.raises(CalibrationError, match="less than one batch"):
        reconstruct(make_prepared(), batches(), replace(QUICK, cache_bytes=1000), progress=False)
    result = reconstruct(make_prepared(), batches(), replace(QUICK, weight_steps=1, samples=6), progress=False)
    assert result.samples == 6
