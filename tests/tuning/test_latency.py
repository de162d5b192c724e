"""Whose time is measured, and for whom it counts."""

from __future__ import annotations

from itertools import count

import pytest
import torch
from tiny_graphs import Shortcut, prepared

from qdiff_fx.tuning import latency
from qdiff_fx.tuning.choice import FLOAT
from qdiff_fx.tuning.latency import BYTES, NIBBLES, WIDE, measure_layers
from qdiff_fx.tuning.layer_substitution import LayerSubstitution
from qdiff_fx.tuning.units import units_of

BITS = (2, 4, 8)
INPUTS = [torch.randn(2, 3, 8, 8), torch.full((2,), 480.0)]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return prepared(Shortcut().eval(), *INPUTS)


@pytest.fixture
def measured(monkeypatch):
    """On a clock that gives every next layer a second more, and a choice its place among those that take turns."""
    layers = count(1)

    def take_turns(calls, inputs, rounds, before):
        layer = next(layers)
        for key in calls:
            calls[key](*inputs[key])
        return {key: [layer + place, layer + place + 0.1] for place, key in enumerate(calls)}

    monkeypatch.setattr(latency, "take_turns", take_turns)

    def measure(network, **allowed):
        units = {unit: unit.choices(BITS, **allowed) for unit in units_of(network.graph_module)}
        return measure_layers(LayerSubstitution(network), units, INPUTS, "reference", False)

    return measure


def test_like_layers_are_measured_together(network, measured):
    times = measured(network, allow_float=True, allow_wide=True)
    assert times["to_q"] == times["to_k"] == times["to_v"]
    assert times["to_q"] != times["conv_in"]
    # conv_in, deep, two parts of the shortcut (one has the bias), ...: each by the median of its rounds.
    assert times["conv_in"][FLOAT] == pytest.approx(1.05)
    assert times["shortcut"][FLOAT] == pytest.approx(3.05 + 4.05)
    assert times["shortcut"][WIDE] - times["shortcut"][FLOAT] == pytest.approx(3 * 2)


def test_what_is_not_offered_is_not_measured(network, measured):
    times = measured(network, allow_float=False, allow_wide=False)
    assert set(times["deep"]) == {NIBBLES, BYTES}
    assert set(times["scaled_dot_product_attention"]) == {BYTES}  # attention has no weights
    assert set(measured(network, allow_float=False, allow_wide=True)["deep"]) == {NIBBLES, BYTES, WIDE}


def test_what_is_remembered_over_steps_takes_no_time(network, measured):
    assert set(measured(network, allow_float=True, allow_wide=True)["time"].values()) == {0.0}


def test_what_differs_in_shape_or_bits_is_no_like(network, measured):
    times = measured(network, allow_float=False, allow_wide=False)
    assert (
        len({times[path][BYTES] for path in ("conv_in", "deep", "conv_out", "to_q", "scaled_dot_product_attention")})
        == 5
    )
