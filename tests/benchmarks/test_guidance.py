"""Halves one by one are halves together; the rows say what was guided."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.guidance import SHARES, Judge, one_by_one
from qdiff_fx.bundled.digits import load_digits_unet


@torch.no_grad()
def test_halves_one_by_one_are_halves_together() -> None:
    network: Any = load_digits_unet()
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 1, 32, 32, generator=generator)
    inputs = (sample, torch.tensor(300), torch.randn(2, 4, 64, generator=generator))
    together = network(*inputs).sample
    with one_by_one(network):
        found = network(inputs[0], inputs[1], encoder_hidden_states=inputs[2]).sample
    torch.testing.assert_close(found, together, rtol=1e-3, atol=1e-4)
    assert "forward" not in vars(network)


@pytest.mark.slow
def test_rows_of_the_float_network() -> None:
    judge = Judge(images=10, steps=5, seed=0)
    rows = list(judge.rows("float", judge.of_float))
    assert [(row.guided, row.halves) for row in rows] == [
        (5, "together"),
        (5, "one by one"),
        *((round(5 * share), "together") for share in SHARES[1:]),
    ]
    assert (rows[0].psnr, rows[0].psnr_of_float, rows[0].frechet) == (None, None, pytest.approx(0, abs=1e-3))
    psnrs = [row.psnr for row in rows[1:]]
    assert psnrs[0] is not None
    assert psnrs[0] > 60
    assert psnrs[1:] == sorted(psnrs[1:], reverse=True)
