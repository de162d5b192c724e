"""The loop over a network: what gets codes, that they arrive, and that they help."""

import pytest
import torch
import torch.nn.functional as F
from in_threads import in_threads
from tiny_graphs import Plain, Shortcut, alike, prepare
from torch import nn

from qdiff_fx import QDiffConfig, calibrate, convert_qdiff, load_qdiff, prepare_qdiff, round_weights, save_qdiff
from qdiff_fx.errors import ArtifactError, CalibrationError, ConfigError, ConversionError
from qdiff_fx.ir.edit import get_attr_tensor
from qdiff_fx.ir.facts import layer_id, quantized_layers
from qdiff_fx.quant.numerics import sqnr_db
from qdiff_fx.quant.parameters import NOTHING
from qdiff_fx.weight_rounding import loop

TIMES = (40.0, 900.0)


def images(seed, count=4):
    """Smooth, so that neighbouring pixels and channels say much the same."""
    noise = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(noise, 5, 1, 2) * 4


def batches(seed):
    return [{"x": images(seed + 10 * i), "t": torch.full((4,), t)} for i, t in enumerate(TIMES)]


def prepared(net, data, **config):
    config = {"weight_bits": 4, "weight_rounding": "second_order"} | config
    network = prepare(net, QDiffConfig(**alike(config)), data[0])
    calibrate(network, data, progress=False)
    return network


def rounded(net, data, **config):
    network = prepared(net, data, **config)
    return network, round_weights(network, data, progress=False)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def chosen(network):
    return dict(network.decided.weights)


@pytest.mark.parametrize("bits", [3, 4])
def test_a_network_is_closer_to_float_than_with_nearest_rounding_on_other_data(bits):
    net, data = Shortcut(), batches(1)
    better = convert_qdiff(rounded(net, data, weight_bits=bits)[0], "reference")
    nearest = convert_qdiff(prepared(net, data, weight_bits=bits, weight_rounding="nearest"), "reference")
    for test in batches(77):
        with torch.no_grad():
            exact = net(**test)
        assert sqnr_db(exact, better(**test)) > sqnr_db(exact, nearest(**test)) + 1


def test_every_part_of_a_split_layer_gets_codes_of_its_own():
    network, report = rounded(Shortcut(), batches(1))
    assert {"shortcut[0:16]", "shortcut[16:32]", "conv_in", "to_q", "time"} <= set(report.rounded)
    assert not report.refused
    assert len(chosen(network)) == len(report.rounded)


def test_codes_arrive_bit_for_bit_in_the_graph_and_in_the_file(tmp_path):
    network, _ = rounded(Shortcut(), batches(1))
    saved = save_qdiff(convert_qdiff(network, "reference"), tmp_path / "saved")
    graph = load_qdiff(saved, "reference").graph_module
    layers = {layer_id(n): n for n in quantized_layers(graph)}
    found = chosen(network)
    assert found
    for name, expected in found.items():
        codes, scales = (get_attr_tensor(graph, node) for node in layers[name].args[1].args[:2])
        torch.testing.assert_close((codes, scales), (expected.codes, expected.scales), rtol=0, atol=0)
    packed = load_qdiff(saved, "native")
    torch.testing.assert_close(packed(**batches(5)[0]), convert_qdiff(network)(**batches(5)[0]), rtol=0, atol=0)


def test_layers_that_read_one_tensor_share_a_hessian(monkeypatch):
    made = []
    factorise = loop.factorise
    monkeypatch.setattr(loop, "factorise", lambda *a, **k: made.append(1) or factorise(*a, **k))
    _, report = rounded(Shortcut(), batches(1))
    assert len(made) == len(report.rounded) - 2  # to_q, to_k and to_v


def test_under_a_small_cap_wide_layers_are_rounded_in_parts(monkeypatch):
    columns = []
    factorise = loop.factorise
    monkeypatch.setattr(loop, "factorise", lambda hessian, **k: columns.append(len(hessian)) or factorise(hessian, **k))
    network, data = prepared(Shortcut(), batches(1)), batches(1)
    capped, nearest = network.with_config(network.qconfig), prepared(Shortcut(), data, weight_rounding="nearest")
    report = round_weights(network, data, progress=False)
    whole, columns[:] = list(columns), []
    assert round_weights(capped, data, memory_cap_bytes=4 * 72**2, progress=False).rounded == report.rounded
    assert max(whole) == 144
    assert max(columns) == 72
    assert sum(columns) == sum(whole)
    some, all_in_one = convert_qdiff(capped, "reference"), convert_qdiff(network, "reference")
    with torch.no_grad():
        exact = network(**batches(77)[0])
    found = [sqnr_db(exact, each(**batches(77)[0])) for each in (convert_qdiff(nearest, "reference"), some, all_in_one)]
    assert found == sorted(found)


@pytest.mark.parametrize(("bits", "most"), [(4, 72), (8, 36)])
def test_bits_decide_how_many_columns_are_had_at_once(monkeypatch, bits, most):
    monkeypatch.setattr("qdiff_fx.weight_rounding.jobs.MOST_COLUMNS", 100)
    monkeypatch.setattr("qdiff_fx.weight_rounding.jobs.MOST_COLUMNS_OF_BYTES", 50)
    columns = []
    factorise = loop.factorise
    monkeypatch.setattr(loop, "factorise", lambda hessian, **k: columns.append(len(hessian)) or factorise(hessian, **k))
    rounded(Shortcut(), batches(1), weight_bits=bits)
    assert max(columns) == most  # of 144


def test_a_channel_that_is_too_large_by_itself_is_rounded_to_nearest():
    network = prepared(Shortcut(), batches(1))
    report = round_weights(network, batches(1), memory_cap_bytes=4 * 8**2, progress=False)
    assert set(report.refused) == {"conv_in", "deep", "conv_out"}
    assert "the Hessian of one channel takes 324 bytes" in report.refused["deep"]
    assert all(row.integer for row in convert_qdiff(network, "reference").explain())


def test_layers_with_codes_keep_them():
    network, first = rounded(Shortcut(), batches(1))
    before = chosen(network)
    again = round_weights(network, batches(2), progress=False)
    assert first.rounded
    assert not again.rounded
    assert all(chosen(network)[name] is codes for name, codes in before.items())


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(3, 6, 3, groups=3), "grouped"),
        (nn.ConvTranspose2d(3, 6, 3), "2-d"),
    ],
)
def test_other_layers_are_rounded_to_nearest_and_say_why(layer, reason):
    data = [{"x": images(1)}]
    network, report = rounded(Plain(layer), data)
    assert reason in report.refused["layer"]
    nearest = convert_qdiff(prepared(Plain(layer), data, weight_rounding="nearest"), "reference")
    torch.testing.assert_close(convert_qdiff(network, "reference")(images(1)), nearest(images(1)), rtol=0, atol=0)


def test_rows_of_a_batch_may_lie_at_different_timesteps():
    data = [{"x": images(1), "t": torch.tensor([40.0, 900.0, 40.0, 900.0])}]
    _, report = rounded(Shortcut(), data)
    assert report.rounded


def test_the_prepared_network_still_computes_in_float():
    net, data = Shortcut(), batches(1)
    network, _ = rounded(net, data)
    with torch.no_grad():
        torch.testing.assert_close(network(**data[0]), net(**data[0]))


def test_asking_for_it_and_not_doing_it_is_an_error():
    with pytest.raises(ConversionError, match="round_weights"):
        convert_qdiff(prepared(Shortcut(), batches(1)), "reference")


def test_by_default_it_is_second_order_where_weights_were_rounded_and_nearest_elsewhere():
    data, net = batches(2), Shortcut()
    (plain, _), (asked, _) = (rounded(net, data, weight_rounding=each) for each in ("auto", "second_order"))
    x = data[0]
    assert torch.equal(convert_qdiff(plain, "reference")(**x), convert_qdiff(asked, "reference")(**x))
    untouched, nearest = (prepared(net, data, weight_rounding=each) for each in ("auto", "nearest"))
    assert torch.equal(convert_qdiff(untouched, "reference")(**x), convert_qdiff(nearest, "reference")(**x))
    assert not torch.equal(convert_qdiff(untouched, "reference")(**x), convert_qdiff(plain, "reference")(**x))


def test_doing_it_without_asking_for_it_is_an_error():
    network = prepared(Shortcut(), batches(1), weight_rounding="nearest")
    with pytest.raises(ConfigError, match="second_order"):
        round_weights(network, batches(1))


def test_without_batches_is_an_error():
    with pytest.raises(CalibrationError, match="no batches"):
        round_weights(prepared(Shortcut(), batches(1)), [])


def test_before_calibration_is_an_error():
    config = QDiffConfig(weight_rounding="second_order")
    with pytest.raises(CalibrationError, match="saw no data"):
        round_weights(prepare_qdiff(Shortcut().eval(), config, batches(1)[0]), batches(1))


@pytest.mark.parametrize("size", [1, 3])
def test_codes_are_the_same_whatever_the_batches(size):
    whole = batches(1)
    pieces = [{name: part[i : i + size] for name, part in batch.items()} for batch in whole for i in range(0, 4, size)]
    expected = prepared(Shortcut(), whole)
    found = expected.with_config(expected.qconfig)
    round_weights(expected, whole, progress=False)
    round_weights(found, pieces, progress=False)
    assert chosen(found) == chosen(expected)


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1])
def test_a_run_that_was_killed_goes_on_to_the_same_codes(tmp_path, monkeypatch, after):
    network, data = prepared(Shortcut(), batches(1)), batches(1)
    fresh, expected = network.with_config(network.qconfig), network.with_config(network.qconfig)
    report = round_weights(expected, data, progress=False)

    save, left = loop.Checkpoint.save, [after]

    def killing(self, *args):
        if not left[0]:
            raise Killed
        left[0] -= 1
        save(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Checkpoint, "save", killing)
        with pytest.raises(Killed):
            round_weights(network, data, resume_dir=tmp_path / "work", progress=False)
    assert not chosen(network)
    assert round_weights(fresh, data, resume_dir=tmp_path / "work", progress=False) == report
    assert chosen(fresh) == chosen(expected)


def test_a_work_folder_of_other_data_is_refused(tmp_path):
    network = prepared(Shortcut(), batches(1))
    other = network.with_config(network.qconfig)
    round_weights(network, batches(1), resume_dir=tmp_path / "work", progress=False)
    with pytest.raises(ArtifactError, match="another set of samples"):
        round_weights(other, batches(2), resume_dir=tmp_path / "work", progress=False)


def test_layers_whose_inputs_were_hardly_seen_are_named():
    data = [{"x": images(1, count=1)[..., :4, :4], "t": torch.tensor([40.0])}]
    _, report = rounded(Shortcut(), data)
    assert report.short == {"conv_in": 16, "deep": 16, "conv_out": 16}  # of 27 and 144 columns
    assert set(report.short) <= set(report.rounded)


def test_activations_that_take_too_much_room_are_an_error():
    network = prepared(Shortcut(), batches(1))
    with pytest.raises(CalibrationError, match="the cap is 1,000"):
        round_weights(network, batches(1), cache_bytes=1000, progress=False)
    assert not chosen(network)


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_choose_the_codes_of_one(tmp_path, count):
    """Of three, one has no rows: there are two chunks."""
    data = batches(1)
    alone = prepared(Shortcut(), data)
    networks = [alone.with_config(alone.qconfig) for _ in range(count)]
    report = round_weights(alone, data, progress=False)

    def work(workers):
        return round_weights(
            networks[workers.rank], data, resume_dir=tmp_path / "work", progress=False, workers=workers
        )

    assert in_threads(count, work) == [report] * count
    assert all(chosen(each) == chosen(alone) for each in networks)
    again = alone.with_config(alone.qconfig)
    again.decided = NOTHING
    assert round_weights(again, data, resume_dir=tmp_path / "work", progress=False) == report
    assert chosen(again) == chosen(alone)
