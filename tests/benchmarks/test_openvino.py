"""The rival computes the same network: exactly in float, closely in int8."""

from pathlib import Path

import pytest
import torch

from benchmarks.lineup import get_contender
from benchmarks.networks import get_network
from qdiff_fx.evaluation import predict, sqnr_db

pytestmark = pytest.mark.slow
pytest.importorskip("openvino", reason="needs the bench extra")
pytest.importorskip("nncf", reason="needs the bench extra")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "decibels"), [("openvino-f32", 60), ("openvino-int8-default-f32", 15)])
@torch.no_grad()
def test_predicts_what_the_network_does(name: str, decibels: float, tmp_path: Path) -> None:
    network, contender = get_network("sd-tiny"), get_contender(name)
    unet = network.build(False)
    contender.prepare(unet, network, [network.inputs(seed) for seed in range(2)], tmp_path)
    inputs = network.inputs(seed=5)
    expected = predict(unet, **inputs)
    assert sqnr_db(expected, contender.load(network, tmp_path)(**inputs)) > decibels


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_takes_a_samplers_scalar_timestep(tmp_path: Path) -> None:
    network, contender = get_network("sd-tiny"), get_contender("openvino-f32")
    contender.prepare(network.build(False), network, [], tmp_path)
    step, inputs = contender.load(network, tmp_path), network.inputs()
    scalar = inputs | {"timestep": inputs["timestep"][0]}
    assert torch.equal(step(**inputs), step(**scalar))
