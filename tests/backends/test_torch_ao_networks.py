"""Whole UNets on the torch.ao engines, through the public calls."""

import pytest
import torch
import zoo
from tiny_graphs import reference_for

from qdiff_fx import QDiffConfig, calibrate, convert_qdiff
from qdiff_fx.quant.numerics import sqnr_db

CONFIG = QDiffConfig(weight_range="max", act_range="minmax")


@pytest.fixture(params=["x86", "qnnpack"])
def engine(request):
    if request.param not in torch.backends.quantized.supported_engines:
        pytest.skip(f"this build of torch has no {request.param} engine")
    return request.param


@pytest.fixture(
    scope="module",
    params=zoo.networks("ddpm_cifar", "sd1", "ddpm_scale_shift", "masked", "one_resolution"),
)
def unet(request):
    """(float network, inputs, the network quantized as torch.ao quantizes)."""
    network, inputs, _ = zoo.captured(request.param)
    prepared = zoo.prepared(request.param, CONFIG, output_quantizers=True)
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
