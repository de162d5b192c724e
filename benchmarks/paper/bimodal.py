"""Figure 7: the two halves of a concatenation, and of the weights that read it, differ in range."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.paper.result import Result
from benchmarks.paper.study import Study
from qdiff_fx import PreparedUNet
from qdiff_fx.ir.annotations import has, nodes_with, path_of, require
from qdiff_fx.ir.arguments import operand
from qdiff_fx.ir.edit import get_attr_tensor
from qdiff_fx.ir.facts import LayerPlan, Part, layer_id
from qdiff_fx.observers import TimestepObserver
from qdiff_fx.observers.statistics import Statistics


def bimodal(study: Study) -> Result:
    """Largest magnitude of each part of every split layer's input and weight; the most uneven one drawn."""
    prepared = study.prepared()
    parts = _parts(prepared)
    if not parts:
        return Result("No layer reads a concatenation", [{"layer": "none"}])
    rows = [_row(path, halves) for path, halves in parts.items()]
    worst = max(rows, key=lambda row: max(row["input ratio"], 1 / row["input ratio"]))["layer"]

    def draw(figure):
        for index, what in enumerate(("activations", "weights")):
            axes = figure.add_subplot(1, 2, index + 1)
            for name, stats, weight in parts[worst]:
                label = name[name.index("[") :]
                if what == "weights":
                    axes.hist(weight.flatten().numpy(), bins=80, density=True, alpha=0.5, label=label)
                else:
                    axes.stairs(*_histogram(stats), alpha=0.5, fill=True, label=label)
            axes.set(title=f"{what} of {worst}", yscale="log")
            axes.title.set_fontsize(8)
            axes.legend(fontsize=8)

    return Result("The parts of concatenations (figure 7)", rows, draw)


def _parts(prepared: PreparedUNet) -> dict[str, list[tuple[str, Statistics, Tensor]]]:
    """Path of each split layer → (name, input statistics, weight) of its parts."""
    gm = prepared.graph_module
    found: dict[str, list[tuple[str, Statistics, Tensor]]] = {}
    for node in nodes_with(gm, LayerPlan):
        if has(node, Part) and require(node, LayerPlan).info.quantized:
            observer = gm.get_submodule(str(node.args[0].target))
            assert isinstance(observer, TimestepObserver)
            part = (layer_id(node), observer.statistics(), get_attr_tensor(gm, operand(node, 1)).detach())
            found.setdefault(path_of(node), []).append(part)
    return found


def _row(path: str, parts: list[tuple[str, Statistics, Tensor]]) -> dict[str, Any]:
    inputs = [float(max(s.max_val[s.seen].max(), -s.min_val[s.seen].min())) for _, s, _ in parts]
    weights = [float(weight.abs().max()) for _, _, weight in parts]
    return {
        "layer": path,
        "largest inputs": " / ".join(f"{each:.2f}" for each in inputs),
        "input ratio": inputs[0] / inputs[-1],
        "largest weights": " / ".join(f"{each:.3f}" for each in weights),
        "weight ratio": weights[0] / weights[-1],
    }


def _histogram(stats: Statistics) -> tuple[Any, Any]:
    """Densities and edges of the timestep bin with the widest range."""
    at = int((stats.max_val - stats.min_val).masked_fill(~stats.seen, -1).argmax())
    counts, width = stats.hist[at].double(), 2.0 ** float(stats.exponent[at])
    counts = counts.reshape(-1, 16).sum(1)
    edges = (torch.arange(len(counts) + 1, dtype=torch.float64) - len(counts) / 2) * width * 16
    filled = counts.nonzero().flatten()
    kept = slice(int(filled[0]), int(filled[-1]) + 1)
    density = counts / counts.sum() / (width * 16)
    return density[kept].numpy(), edges[kept.start : kept.stop + 1].numpy()
