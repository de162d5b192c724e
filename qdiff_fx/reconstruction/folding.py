"""What of a unit stays the same while some of it is learned: computed once for every sample, not at every step."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, fx

from qdiff_fx.ir.annotations import value_or_none
from qdiff_fx.ir.subgraph import Subgraph, subgraph
from qdiff_fx.reconstruction.cache import STORED, ActivationCache
from qdiff_fx.reconstruction.stage import FIXED, QUANTIZED, Stage, read
from qdiff_fx.reconstruction.units import is_quantized


@contextmanager
def folded(
    stage: Stage, cache: ActivationCache, learned: Collection[object], *, bfloat16: bool, room: int, chunk: int
) -> Iterator[Stage]:
    """The stage without what comes before anything learned; that is cached for every sample meanwhile.

    Args:
        learned: the modules that are learned.
        bfloat16: layers run in it: what only they read is kept in it.
        room: bytes that the cache may take in all; where they are too few, the stage stays as it is.
        chunk: samples computed at a time.
    """
    module = stage.part.module
    moving = _moving(module, learned)
    border = [node for node in module.graph.nodes if _is_border(node, moving)]
    if not border:
        yield stage
        return
    before = subgraph(module, border, lambda node: False)
    kept = [torch.bfloat16 if bfloat16 and _for_layers(node, moving) else STORED for node in border]
    names = [f"{FIXED}.{node.name}" for node in border]
    sizes = [each.numel() * dtype.itemsize for each, dtype in zip(_run(before, cache, slice(0, 1)), kept, strict=True)]
    if cache.bytes + sum(sizes) * cache.samples > room:
        yield stage
        return
    for start in range(0, cache.samples, chunk):
        rows = slice(start, min(start + chunk, cache.samples))
        for name, result, dtype in zip(names, _run(before, cache, rows), kept, strict=True):
            cache.write(name, rows, result, dtype)
    output = next(node for node in module.graph.nodes if node.op == "output").all_input_nodes
    try:
        yield replace(stage, part=subgraph(module, output, set(border).__contains__))
    finally:
        for name in names:
            cache.drop(name)


def _moving(module: fx.GraphModule, learned: Collection[object]) -> set[fx.Node]:
    """The nodes that change while modules learn."""
    moving: set[fx.Node] = set()
    for node in module.graph.nodes:
        own = node.op == "call_module" and any(
            each in learned for each in module.get_submodule(str(node.target)).modules()
        )
        if own or any(each in moving for each in node.all_input_nodes):
            moving.add(node)
    return moving


def _is_border(node: fx.Node, moving: set[fx.Node]) -> bool:
    """Whether it is computed for every sample, stays the same, and something that changes reads it."""
    if node.op in ("placeholder", "get_attr", "output") or node in moving or not _is_floating_of_samples(node):
        return False
    return any(user in moving for user in node.users)


def _is_floating_of_samples(node: fx.Node) -> bool:
    known = value_or_none(node)
    if known is None or not known.is_floating_point() or known.dim() == 0:
        return False
    return not isinstance(known.shape[0], int)


def _for_layers(node: fx.Node, moving: set[fx.Node]) -> bool:
    return all(is_quantized(user) for user in node.users if user in moving)


@torch.no_grad()
def _run(part: Subgraph, cache: ActivationCache, rows: slice) -> tuple[Tensor, ...]:
    results: tuple[Tensor, ...] = part.module(*(read(cache, name, rows, QUANTIZED) for name in part.inputs))
    return results
