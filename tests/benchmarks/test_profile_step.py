"""The profile counts every kernel of a step, and its operations as the step's work is counted elsewhere."""

import pytest
import torch

from benchmarks.artifacts import artifact_folder, ensure_artifact
from benchmarks.lineup import get_contender
from benchmarks.networks import get_network
from benchmarks.profile_step import Timer, profile
from qdiff_fx import load_qdiff
from qdiff_fx.ir.annotations import value
from qdiff_fx.ir.facts import layer_id, quantized_layers
from qdiff_fx.kernels import status

# Quantizing a network with every kind of layer takes a quarter of a minute.
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not status().available, reason=status().reason or "-")]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    network, contender = get_network("sd-tiny"), get_contender("native")
    cache = tmp_path_factory.mktemp("cache")
    ensure_artifact(cache, network, contender)
    return artifact_folder(cache, network, contender)


def test_all_work_is_found(artifact):
    rows, seconds, dots, copies = profile("sd-tiny", artifact, rounds=1)
    work = get_network("sd-tiny").work()
    found = {row.kind: row.gop for row in rows}
    # What depends on the timestep or the prompt alone was done by the step before, and is counted for none.
    assert found["attention"] == pytest.approx(work.attention_gflop, rel=1e-6)
    layers = sum(gop for kind, gop in found.items() if kind != "attention")
    assert 0.8 * work.gflop < layers <= work.gflop
    assert {"linear", "group norm", "layer norm", "convolution 3x3"} <= set(found)
    assert all(row.ms > 0 and row.bound_ms > 0 for row in rows if row.kind != "other")
    assert min(seconds, dots, copies) > 0


def test_a_first_step_does_everything(artifact):
    network, inputs = load_qdiff(artifact), get_network("sd-tiny").inputs()
    with torch.no_grad(), Timer() as timer:
        network(**inputs)
    work = get_network("sd-tiny").work()
    layers = quantized_layers(network.graph_module)
    (twice,) = [n for n in layers if layer_id(n) == "conv_in[rest]"]  # the sample is two codes
    again = 2 * inputs["sample"][:, 0].numel() * value(twice.args[1]).numel() / 1e9
    operations = sum(total[1] for kind, total in timer.totals.items() if kind != "attention") / 1e9
    assert operations == pytest.approx(work.gflop + again, rel=1e-3)
