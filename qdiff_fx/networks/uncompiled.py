"""Networks inside `torch.compile`: what surrounds them is compiled, and they run as they are.

Tracing would hand fake tensors to compiled kernels, and take what is remembered between calls for constants.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from qdiff_fx.errors import QDiffError

Forward = TypeVar("Forward", bound=Callable[..., Any])

WHY = "It runs on kernels that are compiled already: leave fullgraph=True out, and what surrounds it is compiled."


def uncompiled(forward: Forward) -> Forward:
    """A `forward` that `torch.compile` breaks its graph at, with a reason for `fullgraph=True` to show.

    What it returns raises QDiffError under `torch.export`, which has no place for a break.
    """

    @functools.wraps(forward)
    def called(self: object, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            return forward(self, *args, **kwargs)
        if torch.compiler.is_exporting():
            raise QDiffError(
                "it is a graph of its own, which torch.export cannot look into",
                where=type(self).__name__,
                fix="Call qdiff_fx.export_qdiff(network, 'network.pt2'), which writes such a program",
            )
        torch._dynamo.graph_break(msg=f"{type(self).__name__}: {WHY}")
        return torch.compiler.disable(forward)(self, *args, **kwargs)

    return called  # type: ignore[return-value]  # of the same signature
