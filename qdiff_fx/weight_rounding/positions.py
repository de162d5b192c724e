"""Which positions of a row are looked at: spread evenly over places, and others in the next row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Fractions of 2^32 whose multiples fill the circle evenly, alone and together: of the golden ratio, and of the square
# of the plastic number (Roberts, "The unreasonable effectiveness of quasirandom sequences", 2018).
_FROM_POSITION, _FROM_ROW = 2654435769, 2447445414
_WHOLE = 1 << 32


def positions_of(rows: Sequence[int], count: int, budget: int) -> Tensor:
    """Positions of each row, int64 [N, min(count, budget)], ascending, no two the same.

    All `count` of them, an image's pixels line after line, are cut into as many stretches as are wanted, and one of
    each is taken: at a fraction of its length that grows by the golden ratio from stretch to stretch, so that columns
    are met as evenly as lines, and by another irrational number from row to row. A row's positions depend on nothing
    but its number.
    """
    wanted = min(count, budget)
    edges = torch.arange(wanted + 1) * count // max(1, wanted)
    starts, lengths = edges[:-1], edges[1:] - edges[:-1]
    of_row = torch.tensor([int(row) * _FROM_ROW % _WHOLE for row in rows], dtype=torch.int64)
    fraction = (of_row[:, None] + torch.arange(wanted) * _FROM_POSITION) % _WHOLE
    return starts + (fraction * lengths) // _WHOLE
