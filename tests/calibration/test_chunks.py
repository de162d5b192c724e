"""Rows in the order they stream in: sorted by timestep bin, independent of the batches they came in."""

from dataclasses import replace

import pytest
import torch
from tiny_graphs import Shortcut, alike, prepare

from qdiff_fx import QDiffConfig, calibrate
from qdiff_fx.calibration.chunks import MOST_ROWS, chunks_of
from qdiff_fx.errors import CalibrationError

TIMES = (900.0, 40.0, 500.0)


def rows(count=3):
    """One batch for each timestep, the noisiest first, as a sampler makes them."""
    generator = torch.Generator().manual_seed(0)
    return [{"x": torch.randn(count, 3, 16, 16, generator=generator), "t": torch.full((count,), t)} for t in TIMES]


def network(data):
    prepared = prepare(Shortcut(), QDiffConfig(**alike({})), data[0])
    calibrate(prepared, data, progress=False)
    return prepared


def chunks(data, **options):
    return chunks_of(network(rows()), data, where="test", **options)


def images(found):
    return torch.cat([chunk.inputs["x"] for chunk in found])


def test_rows_are_sorted_by_bin_and_chunks_never_mix_bins():
    data = rows()
    found = chunks(data)
    assert [chunk.bin for chunk in found] == sorted(chunk.bin for chunk in found)
    assert [float(chunk.inputs["t"][0]) for chunk in found] == sorted(TIMES)
    assert all(len(chunk.inputs["t"].unique()) == 1 for chunk in found)
    torch.testing.assert_close(images(found), torch.cat([data[i]["x"] for i in (1, 2, 0)]), rtol=0, atol=0)
    assert [row for chunk in found for row in chunk.rows] == list(range(9))


@pytest.mark.parametrize("size", [1, 2])
def test_they_are_the_same_whatever_the_batches(size):
    whole = rows()
    pieces = [{name: part[i : i + size] for name, part in batch.items()} for batch in whole for i in range(0, 3, size)]
    mixed = [{name: torch.cat([batch[name] for batch in whole]) for name in whole[0]}]
    expected = chunks(whole)
    for data in (pieces, mixed):
        found = chunks(data)
        assert [(chunk.bin, chunk.rows) for chunk in found] == [(chunk.bin, chunk.rows) for chunk in expected]
        torch.testing.assert_close([c.inputs for c in found], [c.inputs for c in expected], rtol=0, atol=0)


def test_chunks_are_as_equal_as_can_be():
    many = rows(count=MOST_ROWS + 2)
    assert [len(chunk.rows) for chunk in chunks(many)] == [MOST_ROWS // 2 + 1] * 6


def test_images_of_several_sizes_go_in_chunks_of_their_own():
    data = [*rows(), {"x": torch.randn(2, 3, 8, 8), "t": torch.full((2,), 40.0)}]
    found = chunks(data)
    assert len(found) == 4
    assert [tuple(chunk.inputs["x"].shape) for chunk in found if chunk.bin == found[0].bin] == [
        (3, 3, 16, 16),
        (2, 3, 8, 8),
    ]


def test_a_row_that_is_not_finite_is_named():
    data = rows()
    data[1]["x"][2, 0, 0, 0] = torch.nan
    with pytest.raises(CalibrationError, match="batch 1, argument 'x'"):
        chunks(data)


def test_a_network_of_one_batch_size_gets_chunks_of_that():
    network = prepare(Shortcut(), QDiffConfig(**alike({})), rows()[0])
    sample = next(i for i, spec in enumerate(network.signature.inputs) if spec.role == "sample")
    fixed = replace(network.signature.inputs[sample], dims=(2, *network.signature.inputs[sample].dims[1:]))
    inputs = [fixed if i == sample else spec for i, spec in enumerate(network.signature.inputs)]
    network.signature = replace(network.signature, inputs=tuple(inputs))
    found = chunks_of(network, rows(count=2) + rows(count=2), where="test")
    assert [len(chunk.rows) for chunk in found] == [2] * 6
    network.flatten_inputs = lambda args, batch: [batch["x"], batch["t"]]
    with pytest.raises(CalibrationError, match="2 samples at a time, and there are 3"):
        chunks_of(network, rows(count=3), where="test")
