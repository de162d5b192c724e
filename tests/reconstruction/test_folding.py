"""What does not change while a unit learns is computed once, and the unit computes the same."""

import pytest
import torch
from residual_net import QUICK, batches, make_prepared

from qdiff_fx.quant.numerics import sqnr_db
from qdiff_fx.reconstruction.cache import ActivationCache
from qdiff_fx.reconstruction.data import gather
from qdiff_fx.reconstruction.folding import folded
from qdiff_fx.reconstruction.simulation import simulate
from qdiff_fx.reconstruction.stage import FLOAT, QUANTIZED, build_stages
from qdiff_fx.reconstruction.units import find_units

PLENTY = 1 << 30


@pytest.fixture(scope="module")
def stages():
    network = make_prepared()
    simulation = simulate(network.graph_module, network.qconfig)
    simulation.switch.set(weights=True, activations=True)
    return gather(network, batches(), QUICK.batch_size), build_stages(simulation, find_units(simulation.graph_module))


def each_unit(samples, stages, tmp_path):
    """Every stage, with its inputs in a cache."""
    with ActivationCache(len(samples), tmp_path) as cache:
        for node, tensor in samples.inputs.items():
            cache.put(node, tensor)
        for stage in stages:
            stage.propagate(cache, FLOAT, 4)
            stage.propagate(cache, QUANTIZED, 4)
            yield stage, cache


def learned(stage, what):
    return [*stage.roundings.values(), *stage.biases.values()] if what == "weights" else [*stage.activations.values()]


def calls(stage):
    return sum(node.op in ("call_function", "call_module") for node in stage.part.module.graph.nodes)


@pytest.mark.parametrize("what", ["weights", "activations"])
def test_a_folded_unit_computes_the_same_from_less(stages, tmp_path, what):
    rows, fewer = torch.tensor([5, 0, 3]), 0
    for stage, cache in each_unit(*stages, tmp_path):
        before = cache.bytes
        with torch.no_grad(), folded(stage, cache, learned(stage, what), bfloat16=False, room=PLENTY, chunk=4) as rest:
            assert sqnr_db(stage.run(cache, rows), rest.run(cache, rows)) > 50  # float16 is what is cached
            assert (cache.bytes > before) == (rest is not stage)
            fewer += calls(rest) < calls(stage)
        assert cache.bytes == before
    assert fewer > (2 if what == "weights" else 0)


def test_where_there_is_no_room_the_unit_stays_whole(stages, tmp_path):
    for stage, cache in each_unit(*stages, tmp_path):
        with folded(stage, cache, learned(stage, "weights"), bfloat16=False, room=cache.bytes, chunk=4) as rest:
            assert rest is stage


def test_what_only_layers_read_is_kept_as_they_take_it(stages, tmp_path):
    kinds = set()
    for stage, cache in each_unit(*stages, tmp_path):
        with folded(stage, cache, learned(stage, "weights"), bfloat16=True, room=PLENTY, chunk=4) as rest:
            found = [cache.read(f"fixed.{name}", slice(0, 1)) for name in rest.part.inputs if f"fixed.{name}" in cache]
            kinds |= {each.dtype for each in found}
            with torch.autocast("cpu", torch.bfloat16):
                assert rest.error(cache, torch.tensor([0, 1])).isfinite().all()
    assert torch.bfloat16 in kinds
