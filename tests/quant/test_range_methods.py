"""Range methods by name: found when asked for, refused when unknown or taken."""

from __future__ import annotations

import pytest

from qdiff_fx import QDiffConfig
from qdiff_fx.errors import ConfigError
from qdiff_fx.observers import ranges
from qdiff_fx.quant import range_methods


@pytest.fixture
def places(monkeypatch):
    """The table, put back afterwards."""
    monkeypatch.setattr(range_methods, "_PLACES", dict(range_methods._PLACES))


def test_every_name_has_a_function():
    found = {name: range_methods.range_method(name) for name in range_methods.range_methods()}
    assert found == {name: getattr(ranges, f"by_{name}") for name in found}


def test_a_registered_method_is_a_choice_of_the_configuration(places):
    with pytest.raises(ConfigError, match="mine"):
        QDiffConfig(act_range="mine")
    range_methods.register("mine", f"{ranges.__name__}:by_minmax")
    assert QDiffConfig(act_range="mine").act_range == "mine"
    assert range_methods.range_method("mine") is ranges.by_minmax


def test_a_name_is_not_taken_over(places):
    with pytest.raises(ConfigError, match="taken by qdiff_fx.observers.ranges:by_mse"):
        range_methods.register("mse", "elsewhere:mse")


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(ConfigError, match="minmax.*moving_average.*percentile.*mse"):
        range_methods.range_method("guess")
