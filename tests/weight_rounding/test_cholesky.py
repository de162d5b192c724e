"""The Cholesky factor in place: what it is, and that threads do not change it."""

import pytest
import torch

from qdiff_fx.weight_rounding import cholesky
from qdiff_fx.weight_rounding.cholesky import BASE, cholesky_


def positive(size, seed=0):
    x = torch.randn(2 * size, size, generator=torch.Generator().manual_seed(seed))
    return x.T @ x / (2 * size) + 0.01 * torch.eye(size)


@pytest.mark.parametrize("size", [1, 5, BASE, BASE + 1, 3 * BASE, 3 * BASE + 17, 700])
def test_it_is_as_exact_as_lapack(size, monkeypatch):
    monkeypatch.setattr(cholesky, "SQUARE", 150)
    matrix = positive(size)
    exact = torch.linalg.cholesky(matrix.double())
    found = matrix.clone().triu(1).neg() + matrix.tril()  # above the diagonal something else
    memory = found.data_ptr()
    assert cholesky_(found)
    assert found.data_ptr() == memory
    off = (found.tril() - exact).abs().max()
    assert off <= 2 * (torch.linalg.cholesky(matrix) - exact).abs().max() + 1e-7


def test_threads_do_not_change_a_bit():
    matrix, before = positive(1100), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(matrix.clone())
            assert cholesky_(found[-1])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0].tril(), found[1].tril())
    assert torch.equal(found[0].tril(), found[2].tril())


@pytest.mark.parametrize("at", [3, 200, 399])
def test_what_is_not_positive_definite_is_said(at):
    matrix = positive(400)
    matrix[at, at] = -1.0
    assert not cholesky_(matrix)
