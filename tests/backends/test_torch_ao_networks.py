"""Whole UNets on the torch.ao engines, through the public calls."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from tiny_graphs import reference_for

from qdiff_fx import QDiffConfig, calibrate, convert_qdiff, prepare_qdiff
from qdiff_fx.quant.numerics import sqnr_db


def load_zoo():
    spec = importlib.util.spec_from_file_location("zoo", Path(__file__).parents[1] / "zoo.py")
    module = sys.modules.setdefault("zoo", importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


ZOO = load_zoo()
CONFIG = QDiffConfig(weight_range="max", act_range="minmax")


@pytest.fixture(params=["x86", "qnnpack"])
def engine(request):
    if request.param not in torch.backends.quantized.supported_engines:
        pytest.skip(f"this build of torch has no {request.param} engine")
    return request.param


@pytest.fixture(scope="module", params=["ddpm_cifar", "sd1"])
def unet(request):
    """(float network, inputs, the network quantized as torch.ao quantizes)."""
    torch.manual_seed(0)
    network, inputs = ZOO.ARCHITECTURES[request.param]()
    prepared = prepare_qdiff(network, CONFIG, inputs, output_quantizers=True)
    calibrate(prepared, [inputs], progress=False)
    return network, inputs, convert_qdiff(prepared, backend="reference", output_quantizers=True)


def test_unets_are_as_faithful_as_the_reference(unet, engine):
    """Not compared with each other: a single code that flips early changes both by as much as quantization does."""
    network, inputs, quantized = unet
    reference = quantized.with_backend("reference", reference_for(engine, output_quantizers=True))
    quantized = quantized.with_backend(engine)
    assert all(row.integer for row in quantized.explain())
    assert {row.info.kind for row in quantized.explain()} == {"conv", "linear", "attention"}
    with torch.no_grad():
        exact = network(**inputs).sample
    expected, actual = (sqnr_db(exact, net(**inputs).sample) for net in (reference, quantized))
    assert expected > 20
    assert actual > expected - 2


def test_unets_take_other_batches_and_sizes(unet, engine):
    network, inputs, reference = unet
    quantized = reference.with_backend(engine)
    larger = {
        name: torch.cat([value, value[:1]]) if torch.is_tensor(value) and value.dim() else value
        for name, value in inputs.items()
    }
    larger["sample"] = torch.randn(3, *inputs["sample"].shape[1:-2], 24, 16)
    with torch.no_grad():
        exact = network(**larger).sample
    assert sqnr_db(exact, quantized(**larger).sample) > 15
