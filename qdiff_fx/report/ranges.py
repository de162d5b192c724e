"""Activation ranges over the timesteps, after Figure 5 of Q-Diffusion (arXiv 2302.04304)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from qdiff_fx.atomic import replacing_file
from qdiff_fx.errors import InputError
from qdiff_fx.observers.distribution import distribution_at, quantile
from qdiff_fx.observers.statistics import Statistics
from qdiff_fx.quant.timestep_bins import TimestepBins

TAIL = 0.01
COLUMNS = 3
BAND, CORE, LINE = "#c9d7f2", "#7f9fd9", "#1f3f7f"


def most_varying(records: Sequence[Statistics], count: int) -> list[Statistics]:
    """The records whose range changes most over the timesteps, as a ratio, greatest change first.

    Of layers that read the same activation only the first counts.
    """
    distinct: dict[tuple[float, ...], Statistics] = {}
    for record in records:
        if int(record.seen.sum()) > 1:
            distinct.setdefault((*record.min_val.tolist(), *record.max_val.tolist()), record)
    return sorted(distinct.values(), key=_spread, reverse=True)[:count]


def ranges_figure(records: Sequence[Statistics], num_train_timesteps: int) -> Figure:
    """One panel per record: smallest to largest value, and the middle 98 %, at every timestep bin that saw data.

    Time runs as sampling does, from noise on the left to the image on the right.

    Raises:
        InputError: there are no records, or one of them saw nothing.
    """
    if not records or any(not bool(record.seen.any()) for record in records):
        raise InputError("there are no statistics to draw", where="ranges plot", fix="Calibrate first")
    rows = -(-len(records) // COLUMNS)
    columns = min(len(records), COLUMNS)
    figure = Figure(figsize=(3.6 * columns, 2.3 * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    panels = list(grid.flat)
    for panel, record in zip(panels, records):
        _draw(panel, record, num_train_timesteps)
    for panel in panels[len(records) :]:
        panel.set_visible(False)
    figure.supxlabel("timestep, from noise to image", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), fontsize=8, frameon=False)
    return figure


def save_ranges(records: Sequence[Statistics], num_train_timesteps: int, path: Path) -> Path:
    """Write `ranges_figure` as a PNG file, whole or not at all."""
    figure = ranges_figure(records, num_train_timesteps)
    with replacing_file(path) as draft:
        # The date and matplotlib's version would make every file differ.
        figure.savefig(draft, format="png", dpi=110, metadata={"Software": None})
    return path


def quantiles(record: Statistics, index: int, levels: Sequence[float]) -> list[float]:
    """Values below which the given shares of the activations lie, in one timestep bin that saw data."""
    distribution = distribution_at(record, index)
    low, high = float(record.min_val[index]), float(record.max_val[index])
    # The histogram's outermost bins reach beyond the values in them.
    return [min(max(quantile(distribution, level), low), high) for level in levels]


def _spread(record: Statistics) -> float:
    widths = (record.max_val - record.min_val)[record.seen]
    return float(widths.max() / widths.min().clamp(min=1e-12))


def _draw(panel: Axes, record: Statistics, num_train_timesteps: int) -> None:
    bins = record.seen.nonzero().flatten().tolist()
    width = TimestepBins(num_train_timesteps, len(record.count)).width
    centres = [(index + 0.5) * width for index in bins]
    low, high = record.min_val[record.seen].tolist(), record.max_val[record.seen].tolist()
    panel.fill_between(centres, low, high, color=BAND, label="min to max")
    if record.hist.shape[1]:
        core = [quantiles(record, index, (TAIL, 0.5, 1 - TAIL)) for index in bins]
        lower, middle, upper = zip(*core)
        panel.fill_between(centres, lower, upper, color=CORE, label=f"middle {1 - 2 * TAIL:.0%}")
        panel.plot(centres, middle, color=LINE, linewidth=1.2, label="median")
    panel.set_xlim(num_train_timesteps, 0)
    panel.set_title(record.name, fontsize=7.5)
    panel.tick_params(labelsize=7)
    panel.axhline(0, color="#999999", linewidth=0.5)
