"""Features kept between steps: what a cut leaves, what is reused, and where refreshing pays."""

import json

import pytest
import torch

from benchmarks.cached_network import CachedNetwork, find_cuts, placed_refreshes
from benchmarks.caching import evenly, main, refreshes
from qdiff_fx.capture import capture
from qdiff_fx.sources import SampleRequest, resolve


@pytest.fixture(scope="module")
def digits():
    origin = resolve("digits")
    example = origin.example_inputs()
    captured = capture(origin.unet, example)
    return origin, captured, find_cuts(captured, example)


def test_a_cut_leaves_a_part_of_the_work(digits):
    _, _, cuts = digits
    shares = [cut.left for cut in cuts]
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.25
    assert shares[-1] <= 1


def test_steps_that_compute_everything_are_the_networks(digits):
    origin, captured, cuts = digits
    network, request = CachedNetwork(captured, cuts[0]), SampleRequest(1, 3)
    exact = origin.sample(origin.unet, request)
    network.restart(range(3))
    assert torch.allclose(origin.sample(network, request), exact, atol=1e-5)
    network.restart({0})
    assert not torch.allclose(origin.sample(network, request), exact, atol=1e-3)


def test_what_is_kept_is_of_the_last_step_that_computed_it(digits):
    origin, captured, cuts = digits
    network = CachedNetwork(captured, cuts[0])
    network.restart({0, 2}, watching=True)
    origin.sample(network, SampleRequest(1, 3))
    first, last = network.seen
    assert first.shape == last.shape
    assert not torch.equal(first, last)


def test_features_are_computed_where_they_change():
    features = [torch.full((2,), value) for value in (1.0, 1.0, 1.0, 5.0, 5.0, 9.0)]
    alike = [1.0] * 6
    assert placed_refreshes(features, alike, 3) == [0, 3, 5]
    assert placed_refreshes(features, alike, 1) == [0]
    assert placed_refreshes(features, alike, 6) == [0, 1, 2, 3, 4, 5]
    assert placed_refreshes(features, [1.0, 1.0, 1.0, 0.0, 0.0, 1.0], 2) == [0, 5]


def test_costs_are_met():
    assert refreshes(12, 25, 0.2) == 9
    assert refreshes(1, 25, 0.2) == 1
    assert evenly(3, 9) == [0, 3, 6]


def test_rows_and_a_picture_are_written(tmp_path, monkeypatch):
    for place in ("benchmarks.steps.ALL", "benchmarks.caching.ALL"):
        monkeypatch.setattr(place, 5)
    for place in ("benchmarks.steps.CHOSEN_BY", "benchmarks.caching.CHOSEN_BY"):
        monkeypatch.setattr(place, 1)
    main("digits", [2], 0.25, 1, tmp_path, tmp_path / "caching.json", tmp_path / "caching.png")
    found = json.loads((tmp_path / "caching.json").read_text())
    assert len(found) == len({row["way"] for row in found}) == 5
    assert all(row["cost"] == pytest.approx(2, abs=0.8) for row in found)
    assert (tmp_path / "caching.png").stat().st_size > 1000
