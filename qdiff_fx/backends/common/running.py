"""From a lowered graph to the kernel each layer runs on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import fx, nn

from qdiff_fx.backends.common.base import ATTENTION, LayerReport
from qdiff_fx.ir.annotations import fact, nodes_with, put, require, value_or_none
from qdiff_fx.ir.facts import Computes, layer_info, quantized_layers
from qdiff_fx.kernels.running import attention_kernel_name

ATTENTIONS = (
    ATTENTION,
    torch.ops.qdiff.int_attention_vnni.default,
    torch.ops.qdiff.int_attention_vnni.numbers,
)
UNUSED = "none: nothing reads its result"


class Running(NamedTuple):
    """What a call of a lowered graph runs, and remarks on it."""

    kernel: str
    notes: tuple[str, ...] = ()


def note_layers(gm: fx.GraphModule) -> None:
    """Write on every layer of a q/dq graph that it computes itself; whoever replaces it takes that over."""
    for node in quantized_layers(gm):
        put(node, Computes((layer_info(node).path,)))


def computes(kernel: fx.Node, *sources: fx.Node) -> None:
    """Write on a call that it computes the layers that the sources computed."""
    found = [fact(each, Computes) for each in sources]
    put(kernel, Computes(tuple(path for each in found if each is not None for path in each.layers)))


def name_running(
    rows: Iterable[LayerReport], module: nn.Module, describe: Callable[[fx.Node], Running | None]
) -> tuple[LayerReport, ...]:
    """The rows, each naming what computes its layer in a lowered module.

    Args:
        rows: of the q/dq graph, in its order.
        module: what it was lowered to: graphs whose calls say which layers they compute, one in another.
        describe: what such a call runs; None of one that only hands results on.
    """
    graphs = [each for each in module.modules() if isinstance(each, fx.GraphModule)]
    calls = [node for graph in graphs for node in nodes_with(graph, Computes)]
    running = {
        path: found
        for node in calls
        for path in require(node, Computes).layers
        if (found := describe(node)) is not None
    }
    return tuple(_named(row, running.get(row.info.path, Running(UNUSED))) if row.integer else row for row in rows)


def attention_name(node: fx.Node, prob_bits: int) -> str:
    """What an attention call of a graph runs, as far as its sizes are known."""
    key = node.kwargs.get("k", node.args[1] if len(node.args) > 1 else None)
    value = value_or_none(key) if isinstance(key, fx.Node) else None
    head_dim, keys = (None, None) if value is None else (_known(value.shape[-1]), _known(value.shape[-2]))
    return attention_kernel_name(prob_bits, head_dim, keys)


def _known(size: int | torch.SymInt) -> int | None:
    return size if isinstance(size, int) else None


def _named(row: LayerReport, running: Running) -> LayerReport:
    return replace(row, kernel=running.kernel, notes=(*row.notes, *running.notes))
