"""The plot shows the statistics observers collected."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from qdiff_fx.errors import InputError
from qdiff_fx.observers import MinMaxObserver, Statistics, TimestepObserver
from qdiff_fx.report.ranges import most_varying, quantiles, ranges_figure, save_ranges

BINS, TRAIN_STEPS = 4, 100


def record(name: str, growth: float) -> Statistics:
    """Normal activations whose scale grows by ``growth`` from bin to bin; the last bin sees nothing."""
    observer = TimestepObserver(BINS, TRAIN_STEPS, name=name)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 4000, generator=generator)
    for index in range(BINS - 1):
        observer(values * growth**index, 25 * index)
    return observer.statistics()


def test_quantiles_follow_the_data() -> None:
    found = quantiles(record("a", 1.0), 0, (0.01, 0.5, 0.99))
    assert found == pytest.approx([-2.33, 0.0, 2.33], abs=0.12)


def test_quantiles_of_a_constant_are_the_constant() -> None:
    observer = TimestepObserver(BINS, TRAIN_STEPS)
    observer(torch.full((2, 10), 3.0), 0)
    assert quantiles(observer.statistics(), 0, (0.0, 0.5, 1.0)) == [3.0, 3.0, 3.0]


def test_the_most_varying_layers_come_first() -> None:
    records = [record("still", 1.0), record("wild", 5.0), record("calm", 1.5)]
    assert [r.name for r in most_varying(records, 2)] == ["wild", "calm"]


def test_layers_that_read_the_same_activation_count_once() -> None:
    records = [record("first", 2.0), record("second", 2.0), record("other", 3.0)]
    assert [r.name for r in most_varying(records, 3)] == ["other", "first"]


def test_layers_seen_at_one_timestep_only_do_not_count_as_varying() -> None:
    observer = TimestepObserver(BINS, TRAIN_STEPS, name="once")
    observer(torch.ones(1, 3), 0)
    assert most_varying([observer.statistics()], 3) == []


def test_one_panel_per_layer_with_the_observed_range() -> None:
    figure = ranges_figure([record("a", 2.0), record("b", 1.0)], TRAIN_STEPS)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [panel.get_title() for panel in panels] == ["a", "b"]
    band = panels[0].collections[0].get_paths()[0].vertices
    stats = record("a", 2.0)
    assert band[:, 1].max() == pytest.approx(float(stats.max_val[:3].max()))
    # Bins 0 to 2 of four cover timesteps 0 to 75; the unseen one is not drawn.
    assert (band[:, 0].min(), band[:, 0].max()) == pytest.approx((12.5, 62.5))


def test_time_runs_from_noise_to_image() -> None:
    panel = ranges_figure([record("a", 2.0)], TRAIN_STEPS).axes[0]
    assert panel.get_xlim() == (TRAIN_STEPS, 0)


def test_statistics_without_histogram_show_the_range_alone() -> None:
    observer = MinMaxObserver(BINS, TRAIN_STEPS, name="output")
    observer(torch.randn(2, 8), 0)
    panel = ranges_figure([observer.statistics()], TRAIN_STEPS).axes[0]
    assert len(panel.collections) == 1


def test_nothing_to_draw_is_an_error() -> None:
    empty = TimestepObserver(BINS, TRAIN_STEPS).statistics()
    for records in ([], [empty]):
        with pytest.raises(InputError, match="no statistics"):
            ranges_figure(records, TRAIN_STEPS)


def test_the_same_statistics_give_the_same_file(tmp_path: Path) -> None:
    files = [save_ranges([record("a", 2.0)], TRAIN_STEPS, tmp_path / name) for name in ("one.png", "two.png")]
    assert files[0].read_bytes() == files[1].read_bytes()
    with Image.open(files[0]) as image:
        assert image.format == "PNG"
