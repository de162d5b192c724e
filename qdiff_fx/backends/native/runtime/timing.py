"""How long each layer's kernel takes in a step, run one by one."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import fx, nn

from qdiff_fx.backends.native.runtime.program import Program
from qdiff_fx.ir.annotations import fact
from qdiff_fx.ir.facts import Computes

WARM, ROUNDS = 1, 3


@torch.no_grad()
def layer_seconds(module: nn.Module, call: Callable[[], Any]) -> dict[str, float]:
    """Layer → median seconds of its kernel, with all that the kernel does besides.

    A kernel that computes several layers, the parts of a split one, counts for the first. Kernels are called one by
    one, through torch, so that their sum is more than a step takes.

    Args:
        module: what a network was lowered to.
        call: a step of it.
    """
    found: dict[str, list[float]] = defaultdict(list)
    with _one_by_one(module) as timed:
        for number in range(WARM + ROUNDS):
            timed.clear()
            call()
            if number >= WARM:
                for layer, seconds in timed.items():
                    found[layer].append(seconds)
    return {layer: median(seconds) for layer, seconds in found.items()}


@contextmanager
def _one_by_one(module: nn.Module) -> Iterator[dict[str, float]]:
    programs = [each for each in module.modules() if isinstance(each, Program)]
    timed: dict[str, float] = defaultdict(float)
    usual = [program._run for program in programs]
    for program in programs:
        program._run = _Timed(program.graph_module, timed).run
    try:
        yield timed
    finally:
        for program, run in zip(programs, usual, strict=True):
            program._run = run


class _Timed(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule, timed: dict[str, float]):
        super().__init__(graph)
        self._timed = timed

    def run_node(self, n: fx.Node) -> Any:
        computes = fact(n, Computes)
        if computes is None:
            return super().run_node(n)
        begun = time.perf_counter()
        result = super().run_node(n)
        self._timed[computes.layers[0]] += time.perf_counter() - begun
        return result
