"""How a fusion of the native backend is tested: it fires, the numbers are the same, a second run changes nothing.

A new fusion is one file in `backends/native/fusion/`, one line in the list in `backends/native/backend.py`, and one
case in `tests/backends/native/test_fusions.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tiny_graphs import qdq_graph, run
from torch import fx, nn

from qdiff_fx.backends.native.backend import FUSIONS, NativeOptions, passes
from qdiff_fx.ir.edit import copy_graph
from qdiff_fx.kernels import status
from qdiff_fx.passes.framework import Pass, PassReport, run_passes
from qdiff_fx.passes.rule import Rewrites, Rule

OPTIONS = NativeOptions(torch.float32, reuse=False)


class Net(nn.Module):
    """Layers by name, and a function of them and the inputs, which are called x and t."""

    def __init__(self, function: Callable[..., torch.Tensor], **modules: nn.Module):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


def quantized(net: nn.Module, x: torch.Tensor, **config: Any) -> fx.GraphModule:
    """The q/dq graph of `net`, its random weights always the same."""
    return qdq_graph(net, x, **config)


def lower(gm: fx.GraphModule, without: type[Rule[Any]] | None = None) -> tuple[fx.GraphModule, list[PassReport]]:
    """The lowered graph and what every pass did, with float32 between kernels; one rule may be left out."""
    status()  # as the backend does: how weights are packed is decided before the first is
    lowered = copy_graph(gm)
    with torch.no_grad():
        return lowered, run_passes(lowered, [_without(each, without) for each in passes(OPTIONS)])


def reasons(gm: fx.GraphModule) -> list[tuple[str, str]]:
    """(path, reason) of every fusion that was nearly made."""
    return [(refusal.path, refusal.reason) for report in lower(gm)[1] for refusal in report.refused]


def changes_of_a_second_run(lowered: fx.GraphModule) -> list[str]:
    """What the fusions would still change; empty when they are done."""
    return [change.what for report in run_passes(lowered, FUSIONS) for change in report.changed]


def outputs(graphs: Sequence[fx.GraphModule], x: torch.Tensor) -> list[torch.Tensor]:
    return [run(graph, x) for graph in graphs]


def _without(each: Pass, rule: type[Rule[Any]] | None) -> Pass:
    if rule is None or not isinstance(each, Rewrites):
        return each
    rules = [kept for kept in each.rules if not isinstance(kept, rule)]
    return Rewrites(
        each.name, *rules, requires=each.requires, ensures=each.ensures, breaks=each.breaks, revisit="changed"
    )
