"""Blocks on the native kernels, one after the other, against the whole network on them."""

import pytest
import torch
import zoo

from qdiff_fx import QDiffConfig, calibrate, convert_qdiff, round_weights
from qdiff_fx.calibration.chunks import chunks_of
from qdiff_fx.calibration.stream import Stream
from qdiff_fx.ir.annotations import value
from qdiff_fx.ir.blocks import cut_into_blocks
from qdiff_fx.ir.facts import layer_id, planned_info
from qdiff_fx.passes.quantize.measure import measure, measure_activations
from qdiff_fx.weight_rounding.parts import BlockOnIntegers


def is_layer(node):
    info = planned_info(node)
    return info is not None and info.quantized


def calibrated(name, **config):
    network = zoo.prepared(name, QDiffConfig(weight_bits=4, **config))
    inputs = zoo.captured(name)[1]
    torch.manual_seed(1)
    data = [zoo.resized(inputs, 2) for _ in range(2)]
    calibrate(network, data, progress=False)
    return network, data


@pytest.mark.parametrize("name", zoo.networks("ddpm_cifar", "sd1", "one_resolution", "handwritten_attention"))
def test_they_compute_what_the_whole_network_does_to_the_bit(name):
    network, data = calibrated(name)
    graph, config = network.graph_module, network.qconfig
    chunks = chunks_of(network, data, where="test")
    weights = measure(graph, config).weights
    parameters = measure_activations(graph, config)
    with Stream(chunks) as stream:
        for block in cut_into_blocks(graph, is_layer):
            part = BlockOnIntegers(graph, config, block, parameters, torch.float32).forward(weights)
            stream.pass_block(block, part.run, part.inputs)
        found = torch.cat([stream.value(block.outputs[0], number) for number in range(len(chunks))])
        left = set(stream.store.names) - set(block.outputs)
    assert not left
    whole = convert_qdiff(network, reuse=False, compute_dtype=torch.float32)
    expected = torch.cat([whole._forward_flat(list(chunk.inputs.values()))[0] for chunk in chunks])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_codes_are_those_that_the_layers_read():
    network, data = calibrated("one_resolution")
    graph, config = network.graph_module, network.qconfig
    block = cut_into_blocks(graph, is_layer)[0]
    layers = [layer_id(layer) for layer in block.layers if planned_info(layer).kind != "attention"]
    part, places = BlockOnIntegers(graph, config, block, measure_activations(graph, config)).codes(layers, {})
    (chunk, *_) = chunks_of(network, data, where="test")
    outputs = part.run(*(chunk.inputs[name] for name in part.inputs))
    assert set(places) == set(layers)
    for layer in block.layers:
        if layer_id(layer) in places:
            codes = outputs[places[layer_id(layer)]]
            assert codes.dtype == torch.uint8
            assert codes.shape[1 if codes.dim() == 4 else -1] == value(layer.args[1]).shape[1]


def test_blocks_that_keep_their_codes_make_the_same_inputs_for_the_others():
    first, data = calibrated("one_resolution")
    round_weights(first, data, progress=False)
    last = [layer_id(layer) for layer in cut_into_blocks(first.graph_module, is_layer)[-1].layers]
    second, _ = calibrated("one_resolution")
    kept = {name: weight for name, weight in first.decided.weights.items() if name not in last}
    second.decided = second.decided.with_weights(kept)
    again = round_weights(second, data, progress=False)
    assert again.rounded
    assert set(again.rounded) <= set(last)
    assert all(second.decided.weights[name] == first.decided.weights[name] for name in again.rounded)
