"""Add to what layers return a product of low rank: a LoRA beside integer weights, or beside those that are watched.

    y = W x + up (down x)

It reads what the layer reads: in a q/dq graph its codes as numbers, in an observed one what the observer saw. What
backends lower to integers stays theirs; the two thin layers beside it are in float. A layer that was split over a
concatenation gets its part of `down` at every part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from qdiff_fx.errors import ConfigError
from qdiff_fx.ir.annotations import any_value, fact, nodes_with, put
from qdiff_fx.ir.edit import add_buffer, copy_graph, insert_call, insert_get_attr, is_op
from qdiff_fx.ir.facts import LayerPlan, Part, QuantizedLayer, whole_layer
from qdiff_fx.passes.framework import Change, Pass, PassReport, run_passes
from qdiff_fx.quant.qparams import LayerInfo

aten = torch.ops.aten
IN_FLOAT = "a LoRA, which stays as it was loaded"
POINTWISE = ([1, 1], [0, 0], [1, 1], 1)  # of a convolution, written out as in every canonical graph
WAY_OUT = "Fuse it into the float network (fuse_lora, unload_lora_weights), and quantize that"


@dataclass(frozen=True)
class LowRank:
    """What is added to one layer.

    Attributes:
        down: [r, K], of a convolution [r, C, kh, kw].
        up: [O, r], of a convolution [O, r, 1, 1].
    """

    down: Tensor
    up: Tensor


def with_branches(gm: fx.GraphModule, branches: Mapping[str, LowRank]) -> fx.GraphModule:
    """A copy with branches beside its layers, or the graph itself where there are none; observers are shared.

    Raises:
        ConfigError: see `AddLowRank`.
    """
    if not branches:
        return gm
    copied = copy_graph(gm)
    run_passes(copied, [AddLowRank(branches)])
    return copied


class AddLowRank(Pass):
    """Puts a low-rank branch beside layers.

    Args:
        branches: by the path of the layer's module.
    """

    name = "low_rank"

    def __init__(self, branches: Mapping[str, LowRank]):
        self.branches = branches

    def run(self, gm: fx.GraphModule) -> PassReport:
        """Raises ConfigError for a path that is no layer's, or a branch that does not fit its layer."""
        changes, missing = [], set(self.branches)
        for layer in (*nodes_with(gm, QuantizedLayer), *nodes_with(gm, LayerPlan)):
            path = whole_layer(_info(layer).path)
            branch = self.branches.get(path)
            if branch is not None and is_op(layer, aten.linear.default, aten.conv2d.default):
                missing.discard(path)
                self._add(gm, layer, path, branch)
                changes.append(Change(layer.name, path, f"a branch of rank {len(branch.down)}"))
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise ConfigError(
                f"it changes {', '.join(sorted(missing)[:3])}{more}, and the network has no such linear or convolution",
                where="LoRA",
                fix="Give one that was made for this network. " + WAY_OUT,
            )
        return PassReport(self.name, tuple(changes))

    def _add(self, gm: fx.GraphModule, layer: fx.Node, path: str, branch: LowRank) -> None:
        part = fact(layer, Part)
        down = branch.down if part is None else branch.down[:, part.channels[0] : part.channels[1]]
        _check(path, layer, branch, down)
        after = layer.next
        weights = []
        for name, tensor in (("down", down), ("up", branch.up)):
            at = add_buffer(gm, f"{path}.lora.{name}", tensor.contiguous())
            weights.append(insert_get_attr(gm, after, at, like=layer))
        linear = is_op(layer, aten.linear.default)
        target = aten.linear.default if linear else aten.conv2d.default
        thin = insert_call(gm.graph, after, target, (layer.args[0], weights[0], None, *layer.args[3:]), like=layer)
        pointwise = () if linear else POINTWISE
        added = insert_call(gm.graph, after, target, (thin, weights[1], None, *pointwise), like=layer)
        info = _info(layer)
        for node, what in ((thin, "down"), (added, "up")):
            own = LayerInfo(f"{info.path}.lora_{what}", info.kind, float_reason=IN_FLOAT)
            put(node, QuantizedLayer(own) if fact(layer, QuantizedLayer) else LayerPlan(own, {}))
        total = insert_call(gm.graph, after, aten.add.Tensor, (layer, added), like=layer)
        layer.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)


def _info(layer: fx.Node) -> LayerInfo:
    found = fact(layer, QuantizedLayer) or fact(layer, LayerPlan)
    assert found is not None
    return found.info


def _check(path: str, layer: fx.Node, branch: LowRank, down: Tensor) -> None:
    weight = layer.args[1]
    assert isinstance(weight, fx.Node)
    shape = tuple(any_value(weight).shape)
    grouped = len(layer.args) > 6 and layer.args[6] != 1
    fits = tuple(down.shape[1:]) == shape[1:] and branch.up.shape[0] == shape[0] and branch.up.shape[1] == len(down)
    if grouped or not fits:
        raise ConfigError(
            f"its matrices {tuple(branch.down.shape)} and {tuple(branch.up.shape)} do not fit a "
            f"{'grouped ' if grouped else ''}weight {shape}",
            where=f"LoRA, {path}",
            fix="Give one that was made for this network. " + WAY_OUT,
        )
