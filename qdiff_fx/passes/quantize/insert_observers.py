"""Put an observer on every activation that is to be quantized."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from qdiff_fx.config import QDiffConfig
from qdiff_fx.ir.annotations import describe, describe_like, has, nodes_with, put, require, value
from qdiff_fx.ir.facts import ActivationPlan, LayerPlan, Observed, layer_id, timestep_input
from qdiff_fx.observers import Observer, TimestepObserver
from qdiff_fx.passes.framework import Change, Pass, PassReport

OBSERVERS = "observers"


class InsertObservers(Pass):
    """``layer(x, …)`` becomes ``observer_out(layer(observer_in(x, t), …), t)``.

    Layers that read one tensor under one plan share its observer, so the tensor is quantized once. Outputs are
    watched on demand only: for backends whose kernels quantize what they return.
    """

    name = "insert_observers"
    requires = frozenset({"canonical", "annotated"})
    ensures = frozenset({"observed"})

    def __init__(self, config: QDiffConfig, *, outputs: bool = False, observer: type[Observer] = TimestepObserver):
        self.config, self.outputs, self.observer = config, outputs, observer

    def run(self, gm: fx.GraphModule) -> PassReport:
        if OBSERVERS not in gm._modules:
            gm.add_module(OBSERVERS, nn.ModuleDict())
        timestep = _timestep_node(gm)
        changes: list[Change] = []
        shared: dict[tuple[fx.Node, ActivationPlan], fx.Node] = {}
        for node in [n for n in nodes_with(gm, LayerPlan) if not has(n, Observed)]:
            plan = require(node, LayerPlan)
            if not plan.info.quantized:
                continue
            for index, activation in plan.inputs.items():
                self._observe_input(gm, node, index, activation, timestep, shared)
            watched = self.outputs and plan.info.kind != "attention"
            put(node, Observed(self._observe_output(gm, node, timestep) if watched else ""))
            changes.append(Change(node.name, plan.info.path, f"{len(plan.inputs)} inputs observed"))
        return PassReport(self.name, tuple(changes), ())

    def _observe_input(
        self,
        gm: fx.GraphModule,
        node: fx.Node,
        index: int,
        activation: ActivationPlan,
        timestep: fx.Node,
        shared: dict[tuple[fx.Node, ActivationPlan], fx.Node],
    ) -> None:
        source = node.args[index]
        assert isinstance(source, fx.Node)
        if (source, activation) not in shared:
            name = f"{layer_id(node)} input {index}" if index else f"{layer_id(node)} input"
            observer = self._insert(gm, source, timestep, name, f"{source.name}_to_{node.name}_{index}")
            shared[source, activation] = observer
        node.update_arg(index, shared[source, activation])

    def _observe_output(self, gm: fx.GraphModule, node: fx.Node, timestep: fx.Node) -> str:
        """The path of the observer that now watches what a layer returns."""
        observer = self._insert(gm, node, timestep, f"{layer_id(node)} output", f"{node.name}_output")
        node.replace_all_uses_with(observer, delete_user_cb=lambda user: user is not observer)
        return str(observer.target)

    def _insert(self, gm: fx.GraphModule, source: fx.Node, timestep: fx.Node, name: str, key: str) -> fx.Node:
        make: Any = self.observer  # every subclass takes the schedule; the histogram is its own affair
        module: Observer = make(self.config.timestep_bins, self.config.num_train_timesteps, name=name)
        module.schedule = self.config.schedule
        gm.get_submodule(OBSERVERS).add_module(key, module)
        with gm.graph.inserting_after(max(source, timestep)):
            observer = gm.graph.call_module(f"{OBSERVERS}.{key}", (source, timestep))
        describe_like(observer, source)
        return observer


def _timestep_node(gm: fx.GraphModule) -> fx.Node:
    """The timestep placeholder; a network without one is observed as if every call were timestep 0."""
    given = timestep_input(gm)
    if given is not None:
        return given
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    with gm.graph.inserting_after(placeholders[-1]):
        zero = gm.graph.call_function(torch.ops.aten.zeros.default, ([1],))
    describe(zero, value=value(placeholders[0]).new_zeros([1], dtype=torch.float32))
    return zero
