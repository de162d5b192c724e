"""The tables about second-order rounding, on made-up layers."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import rounding  # noqa: E402


def layer(columns, rows, seed):
    generator = torch.Generator().manual_seed(seed)
    halves = torch.randn(2, rows, columns, generator=generator).cumsum(2)  # neighbours are alike
    moments = [each.T @ each / rows for each in halves]
    return rounding.Layer(torch.randn(10, columns, generator=generator), *moments, rows)


@pytest.fixture(scope="module")
def layers():
    return {"many": layer(30, 600, 0), "some": layer(40, 100, 1), "few": layer(50, 40, 2)}


def cells(text):
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]


def test_ways_are_compared_with_trying_every_scale(layers, capsys):
    rounding.print_ways(layers)
    head, *rows = cells(capsys.readouterr().out)
    errors = {(row[0], row[1]): float(row[2]) for row in rows}
    assert len(head) == 5
    for bits in "348":
        assert errors[bits, "six scales to the end"] == 1
        assert errors[bits, "nearest codes"] > errors[bits, "one scale"] > 0.99
        assert errors[bits, "one scale"] == pytest.approx(
            errors[bits, "one scale, factor by LAPACK in float64"], rel=0.05
        )


def test_dampings_are_compared_by_how_many_rows_there_were(layers, capsys):
    usual = rounding.nearest_plane.DAMPING
    rounding.print_dampings(layers)
    head, *rows = cells(capsys.readouterr().out)
    assert [row[:2] for row in rows] == [["above 4", "1"], ["1.5 to 4", "1"], ["below 1.5", "1"]]
    assert all(len(row) == len(head) and float(row[-1]) < 1 for row in rows)
    assert usual == rounding.nearest_plane.DAMPING


def test_what_layers_read_is_seen_in_two_halves():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(3, 4)

        def forward(self, x):
            return self.linear(self.conv(x).movedim(1, -1))

    net, batches = Net(), [{"x": torch.randn(4, 2, 5, 5)} for _ in range(2)]
    seen = []
    rounding.watch(net, {"conv": net.conv, "linear": net.linear}, batches, lambda *given: seen.append(given))
    assert [(name, number) for name, _, number in seen] == [("conv", 0), ("linear", 0), ("conv", 1), ("linear", 1)]
    halves = rounding.moment_of(net.conv, -4.0, 4.0), rounding.moment_of(net.conv, -4.0, 4.0)
    for name, x, number in seen:
        if name == "conv":
            rounding.add(halves, x, number)
    assert [half.count for half in halves] == [2 * 2 * 25] * 2
    made = rounding.layer_of(net.conv.weight.detach(), *halves)
    assert made.seen.shape == made.unseen.shape == (18, 18)
    assert not torch.equal(made.seen, made.unseen)
