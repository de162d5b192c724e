"""The Cholesky factor of a large matrix in its own memory, the same to the bit for any number of threads.

LAPACK's depends on how many threads share its work, and takes twice as long. Here large products do nearly all of it,
whose every sum is made by one thread; what is left, blocks on the diagonal, is done in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 128  # columns of a block on the diagonal
SQUARE = 1024  # columns of a block of a symmetric product, of which one half is computed twice


def cholesky_(matrix: Tensor) -> bool:
    """Replace the lower triangle of a symmetric matrix by that of L, where `matrix = L Lᵀ`.

    Args:
        matrix: float32 [K, K], of which only the lower triangle is read. What is above its diagonal afterwards means
            nothing.
    Returns:
        Whether it is positive definite; if not, its contents are lost.
    """
    return _factorise(matrix, [])


def _factorise(matrix: Tensor, inverses: list[Tensor]) -> bool:
    """Appends the inverse of each block on the diagonal of L."""
    size = len(matrix)
    if size <= BASE:
        lower, failed = torch.linalg.cholesky_ex(matrix.double())
        identity = torch.eye(size, dtype=torch.float64)
        inverses.append(torch.linalg.solve_triangular(lower, identity, upper=False).float())
        matrix.copy_(lower)
        return not int(failed)
    half = _half(size)
    first = len(inverses)
    below = matrix[half:, :half]
    if not _factorise(matrix[:half, :half], inverses):
        return False
    _solve(below, matrix[:half, :half], inverses[first:])
    _subtract_square(matrix[half:, half:], below)
    return _factorise(matrix[half:, half:], inverses)


def _solve(rows: Tensor, lower: Tensor, inverses: list[Tensor]) -> None:
    """rows := rows L⁻ᵀ, given the inverses of the blocks on the diagonal of L."""
    size = len(lower)
    if size <= BASE:
        rows.copy_(rows @ inverses[0].T)
        return
    half = _half(size)
    _solve(rows[:, :half], lower[:half, :half], inverses[: half // BASE])
    rows[:, half:].addmm_(rows[:, :half], lower[half:, :half].T, alpha=-1)
    _solve(rows[:, half:], lower[half:, half:], inverses[half // BASE :])


def _subtract_square(matrix: Tensor, rows: Tensor) -> None:
    """The lower triangle of matrix -= rows rowsᵀ."""
    size = len(matrix)
    if size <= SQUARE:
        matrix.addmm_(rows, rows.T, alpha=-1)
        return
    half = _half(size)
    _subtract_square(matrix[:half, :half], rows[:half])
    matrix[half:, :half].addmm_(rows[half:], rows[:half].T, alpha=-1)
    _subtract_square(matrix[half:, half:], rows[half:])


def _half(size: int) -> int:
    """About half of it, whole blocks."""
    return (size // 2 + BASE - 1) // BASE * BASE
