"""The graph fuzzer finds faults, shrinks them, and finds none for a while."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qdiff_fx import QuantizedUNet, calibrate, convert_qdiff, prepare_qdiff
from tests.fuzz import graphs
from tests.fuzz.flips import steps_apart, where_it_is_no_rounding
from tests.fuzz.network import build, call
from tests.fuzz.oracle import Trial, config_of
from tests.fuzz.program import Program, block, program

SECONDS = 120


def test_programs_are_drawn_from_their_seeds_and_printed_so_that_they_can_be_read_again():
    for seed in range(50):
        drawn = graphs.draw(seed)
        assert drawn == graphs.draw(seed)
        assert eval(str(drawn), {"program": program, "block": block}) == drawn
    assert graphs.draw(1) != replace(graphs.draw(2), seed=1)


def test_what_fails_shrinks_to_what_it_takes(monkeypatch):
    """Here a network is wrong when two of its blocks meet, in float16."""

    def attempt(tried: Program) -> Trial:
        trial = Trial()
        text = str(tried)
        if "'mlp'" in text and "how='view'" in text and tried.dtype == "float16":
            trial.fail("disagree", "wrong")
        return trial

    monkeypatch.setattr(graphs, "attempt", attempt)
    large = program(
        block("conv", kernel=1),
        block("level", inner=[block("mlp", form="geglu"), block("norm")]),
        block("shift", how="view"),
        block("attention", heads=2),
        **{"rank": 3, "dtype": "float16", "condition": "tokens", "act_bits": 6},
    )
    small, _ = graphs.shrink(large, attempt(large))
    assert small == program(block("mlp"), block("shift", how="view"), dtype="float16")


def test_a_wrong_scale_is_no_rounding():
    written = program(block("conv"), block("norm"), granularity="tensor", timestep="none")
    batch = call(written, 2)
    prepared = prepare_qdiff(build(written), config_of(written), batch)
    calibrate(prepared, [batch], progress=False)
    reference = convert_qdiff(prepared, "reference")
    native = reference.with_backend("native", compute_dtype=torch.float32, reuse=False)
    assert where_it_is_no_rounding(reference, native, batch) == ""
    graph = native._lowered.module.graph_module.graph
    layer = graph.find_nodes(op="call_function", target=torch.ops.qdiff.int_conv.default)[-1]
    quantizer = layer.kwargs["codes"][0]
    quantizer.kwargs = {**quantizer.kwargs, "scale": quantizer.kwargs["scale"] * 1.02}
    assert "first of all" in where_it_is_no_rounding(reference, native, batch)


def test_codes_that_reference_quantizes_behind_an_expansion_are_compared_with_as_many():
    """Native quantizes the keys of learned tokens once; of the tokens themselves there are as many codes."""
    keys, tokens = torch.tensor([[-3, 5], [7, 0]]), torch.tensor([100, 101, 102, 103])
    known = {4: [tokens], 12: [keys.flatten().repeat(3).sort().values]}
    assert steps_apart(keys, known) == 0
    assert steps_apart(keys + 1, known) == 4


@pytest.mark.parametrize("given", ["captured", pytest.param("later", marks=pytest.mark.slow)])
def test_an_optional_condition_that_is_ignored_is_found(given, monkeypatch):
    """A network that takes every call, and computes what it was captured with."""
    written = program(timestep="float", condition="scalar", given=given, granularity="tensor", seed=1)
    assert graphs.attempt(written).finding is None
    plain = QuantizedUNet.forward

    def ignoring(self, x, t, **condition):
        return plain(self, x, t, **({"scalar": torch.tensor(1.5)} if given == "captured" else {}))

    monkeypatch.setattr(QuantizedUNet, "forward", ignoring)
    finding = graphs.attempt(written).finding
    assert finding is not None
    assert finding.kind == "unfaithful"


@pytest.mark.slow
def test_random_networks_are_quantized_or_refused_with_a_sentence():
    tally = graphs.fuzz(range(10_000), SECONDS)
    assert not tally.failed, str(tally)
    assert tally.counts["tried"] > 10
