"""Measuring leaves the network as it was, and sees its layers."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdiff_fx.config import QDiffConfig
from qdiff_fx.observers import Observer
from qdiff_fx.sources import SampleRequest, resolve
from qdiff_fx.workflow.job import Job
from qdiff_fx.workflow.phases import prepare_and_measure

CUSTOM = Path(__file__).parents[2] / "examples" / "custom_unet.py"


@pytest.mark.slow
def test_a_small_network() -> None:
    prepared, costs = prepare_and_measure(resolve(str(CUSTOM)), Job(QDiffConfig(), SampleRequest(1, 1)), False)
    observers = [each for each in prepared.modules() if isinstance(each, Observer)]
    assert all(each.empty for each in observers)
    assert (costs.samples, costs.rows, costs.observers) == (4, 4, len(observers))
    assert 0 < costs.step < 2
    assert costs.watched_step > 0
    sizes = {layer.path: layer for layer in costs.layers}
    first = dict(prepared.graph_module.named_parameters())["first.weight"]
    assert (sizes["first"].outputs, sizes["first"].columns) == (first.shape[0], first[0].numel())
    assert sizes["first"].positions > 1
    assert min(vars(costs.rates).values()) > 0
