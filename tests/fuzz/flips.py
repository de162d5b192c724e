"""Whether two backends differ by rounding alone: where they first do, a few codes have flipped to their neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from qdiff_fx import QuantizedUNet

CODES = (torch.uint8, torch.int8)
aten = torch.ops.aten
# Frames of a volume, channels of a group: codes that were compared as a whole.
PARTS = frozenset({aten.slice.Tensor, aten.cat.default, aten.constant_pad_nd.default})
MOST = 0.03  # of a tensor
LEAST = 3  # one of a row that three samples share: of a time embedding
MOST_BEHIND_ATTENTION = (
    0.06  # one probability of 8 bits that flips changes a row by a fraction of a step: of 16 rows 3 did
)


def where_it_is_no_rounding(reference: QuantizedUNet, native: QuantizedUNet, batch: Mapping[str, Tensor]) -> str:
    """What in the first codes that differ is more than ties between neighbours; empty where nothing is.

    Codes are compared as multisets, as native may quantize before what reference quantizes behind: a permutation.

    Args:
        reference, native: one network on these two backends, without remembering.
        batch: a call of both.
    """
    known: dict[int, list[Tensor]] = {}
    for _, codes in _codes(reference._lowered.module, reference, batch):
        known.setdefault(codes.numel(), []).append(_sorted(codes))
    program: Any = native._lowered.module
    for node, codes in _codes(program.graph_module, native, batch):
        if node.target in PARTS:
            continue
        steps = steps_apart(codes, known) if codes.numel() in known else 0
        if steps:
            most = max(LEAST, int((MOST_BEHIND_ATTENTION if "attention" in node.name else MOST) * codes.numel()))
            return "" if steps <= most else f"{node.name} is {steps} steps off in {codes.numel()} codes, first of all"
    return ""


def steps_apart(codes: Tensor, known: Mapping[int, list[Tensor]]) -> float:
    """How far codes are from the nearest of what is known, in steps; infinite where nothing has a size to compare with.

    What reference quantizes behind an expansion has each of native's codes several times: it is compared with as many.

    Args:
        codes: of one tensor, of any shape.
        known: sorted codes of the other network, by how many they are.
    """
    apart = float("inf")
    for count, candidates in known.items():
        times, rest = divmod(count, codes.numel())
        if not rest:
            ours = _sorted(codes).repeat_interleave(times)
            apart = min(apart, *((ours - theirs).abs().sum().item() / times for theirs in candidates))
    return apart


def _sorted(codes: Tensor) -> Tensor:
    return codes.flatten().int().sort().values


def _codes(module: Any, network: QuantizedUNet, batch: Mapping[str, Tensor]) -> Iterator[tuple[fx.Node, Tensor]]:
    """Every tensor of codes that a graph computes, in order."""
    run = _Recorded(module)
    run.run(*network.flatten_inputs((), dict(batch)))
    for node, made in run.made.items():
        if node.op == "call_function" and isinstance(made, Tensor) and made.dtype in CODES:
            yield node, made


class _Recorded(fx.Interpreter):
    def __init__(self, module: Any):
        super().__init__(module, garbage_collect_values=False)
        self.made: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.made[n] = super().run_node(n)
        return self.made[n]
