"""Which inputs have rows of their own, though in the example there are as many as samples, or several for each."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from qdiff_fx.capture.example import Example
from qdiff_fx.capture.sizes import next_free_prime, traced_sizes
from qdiff_fx.signature.inputs import TensorInput

_FEWER = 7  # a prime, as all sizes that are traced with are, and smaller than these


def unrelated_rows(module: fx.GraphModule, inputs: Sequence[TensorInput], example: Example) -> list[str]:
    """Names of inputs of which the graph takes more and fewer rows than samples: no row belongs to a sample."""
    candidates = [spec.name for spec in inputs if not spec.role and spec.rows_per_sample]
    sizes = traced_sizes(inputs, example)
    # No size is a multiple of another: rows that were divided by mistake, and tokens multiplied, would fit again.
    more = next_free_prime(max(sizes.values(), default=_FEWER), ())
    return [name for name in candidates if all(_runs(module, inputs, sizes, name, rows) for rows in (more, _FEWER))]


def _runs(
    module: fx.GraphModule, inputs: Sequence[TensorInput], sizes: Mapping[str, int], name: str, rows: int
) -> bool:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with mode, torch.no_grad():
            module(*(_fake(spec, sizes, rows if spec.name == name else None) for spec in inputs))
    except Exception:  # of whatever operator finds that sizes do not fit
        return False
    finally:
        log.setLevel(level)
    return True


def _fake(spec: TensorInput, sizes: Mapping[str, int], rows: int | None) -> torch.Tensor:
    shape = [dim if isinstance(dim, int) else dim.multiple * sizes[dim.symbol] for dim in spec.dims]
    return torch.empty([rows, *shape[1:]] if rows else shape, dtype=spec.dtype)
