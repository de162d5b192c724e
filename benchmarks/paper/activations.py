"""Figures 5 and 6: ranges of activations over the timesteps, and layer by layer with the shortcuts marked."""

from __future__ import annotations

import torch

from benchmarks.paper.result import Result
from benchmarks.paper.study import Study
from qdiff_fx.ir.annotations import value
from qdiff_fx.observers import TimestepObserver
from qdiff_fx.observers.distribution import distribution_at, quantile
from qdiff_fx.observers.statistics import Statistics
from qdiff_fx.quant.timestep_bins import TimestepBins

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)


def over_timesteps(study: Study) -> Result:
    """The layer whose input range changes most over the timesteps: its quantiles in each timestep bin (figure 5).

    Of those that see the image: the time embedding's own layers move by design.
    """
    inputs = input_statistics(study, split="shortcut", images_only=True)
    moves = {name: _movement(stats) for name, stats in inputs.items()}
    name = max(moves, key=moves.__getitem__)
    stats = inputs[name]
    bins = [int(each) for each in torch.nonzero(stats.seen).flatten()]
    width = TimestepBins(study.source.num_train_timesteps, len(stats.seen)).width
    table = {at: [_quantile(stats, at, q) for q in QUANTILES] for at in bins}
    rows = [
        {
            "layer": name,
            "timesteps from": int(at * width),
            "min": float(stats.min_val[at]),
            **{f"{q:.0%}": value for q, value in zip(QUANTILES, table[at], strict=True)},
            "max": float(stats.max_val[at]),
        }
        for at in bins
    ]

    def draw(figure):
        axes = figure.add_subplot()
        x = [row["timesteps from"] for row in rows]
        for low, high in (("min", "max"), ("1%", "99%"), ("25%", "75%")):
            axes.fill_between(x, [r[low] for r in rows], [r[high] for r in rows], alpha=0.3, label=f"{low} to {high}")
        axes.plot(x, [row["50%"] for row in rows], color="black", label="median")
        axes.set(xlabel="timestep", ylabel=name)
        axes.legend(fontsize=8)

    return Result("Activations over the timesteps (figure 5)", rows, draw)


def layer_ranges(study: Study) -> Result:
    """Width of the input range of each layer, shortcuts unsplit (figure 6)."""
    split = {name.split("[")[0] for name in input_statistics(study, split="shortcut") if "[" in name}
    inputs = input_statistics(study, split="off")
    rows = [
        {
            "layer": name,
            "range": float(stats.max_val[stats.seen].max() - stats.min_val[stats.seen].min()),
            "shortcut": "yes" if name.removesuffix(" input") in split else "",
        }
        for name, stats in inputs.items()
    ]

    def draw(figure):
        axes = figure.add_subplot()
        for mark, colour, label in (("", "tab:blue", "other layers"), ("yes", "tab:red", "reads a concatenation")):
            chosen = [(index, row["range"]) for index, row in enumerate(rows) if row["shortcut"] == mark]
            axes.bar(*zip(*chosen), color=colour, label=label) if chosen else None
        axes.set(xlabel="layer, in execution order", ylabel="input range")
        axes.legend(fontsize=8)

    return Result("Input range of every layer (figure 6)", rows, draw)


def input_statistics(study: Study, split: str, *, images_only: bool = False) -> dict[str, Statistics]:
    """What the observers of layer inputs saw: name of the layer's input → statistics, in execution order.

    Args:
        images_only: leave out what has no spatial dimensions.
    """
    gm = study.prepared(split=split).graph_module
    found = {}
    for node in gm.graph.nodes:
        if node.op == "call_module" and (value(node).dim() >= 3 or not images_only):
            observer = gm.get_submodule(str(node.target))
            if isinstance(observer, TimestepObserver) and observer.name.endswith(" input"):
                found[observer.name] = observer.statistics()
    return found


def _quantile(stats: Statistics, at: int, probability: float) -> float:
    """Histogram bins are coarser than the range is exact."""
    value = quantile(distribution_at(stats, at), probability)
    return min(max(value, float(stats.min_val[at])), float(stats.max_val[at]))


def _movement(stats: Statistics) -> float:
    """The widest range of a timestep bin over the narrowest."""
    widths = (stats.max_val - stats.min_val)[stats.seen]
    return float(widths.max() / widths.min().clamp(min=1e-12))
