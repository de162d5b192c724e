"""The table of networks: each is built, becomes a row, and no row hides what happened."""

from unittest.mock import Mock

import pytest
import torch

from benchmarks.coverage import audio, autoencoders, images, papers, transformers, video  # noqa: F401, they list networks
from benchmarks.coverage.network import NETWORKS, Network
from benchmarks.coverage.outcome import Outcome, outcome
from benchmarks.coverage.table import document, terminal
from qdiff_fx.errors import CaptureError


def named(id: str) -> Network:
    return next(each for each in NETWORKS if each.id == id)


def test_names_are_unique_and_many():
    assert len({each.id for each in NETWORKS}) == len(NETWORKS) >= 60
    assert len({each.family for each in NETWORKS}) >= 12


def test_a_network_that_works_is_measured():
    row = outcome(named("TabDDPM: a multilayer perceptron over rows of a table"))
    assert (row.crashed, row.refused, row.reasons) == ("", "", ())
    assert (row.integer, row.floating) == (6, 0)
    assert row.reference_db == pytest.approx(row.native_db, abs=1)
    assert row.reference_db > 15


@pytest.mark.parametrize(
    ("error", "field"), [(RuntimeError("torn"), "crashed"), (CaptureError("torn", fix="Mend it"), "refused")]
)
def test_one_that_does_not_says_so(error, field, monkeypatch):
    monkeypatch.setattr("benchmarks.coverage.outcome.prepare_qdiff", Mock(side_effect=error))
    row = outcome(Network("family", "name", lambda: (torch.nn.Linear(3, 3), {"input": torch.zeros(2, 3)}), timestep=""))
    assert "torn" in getattr(row, field)
    assert row.integer == row.floating == 0
    assert "torn" in terminal([row])
    assert "torn" in document([row])


def test_the_document_has_a_line_per_network_and_every_reason():
    rows = [
        Outcome("a: b", "a", "b", integer=3, reference_db=30.0, native_db=29.0),
        Outcome("a: c", "a", "c", integer=1, floating=2, reasons=("no kernel",), reference_db=20.0, native_db=20.0),
        Outcome("d: e", "d", "e", refused="it is not one"),
    ]
    table = [line for line in document(rows).splitlines() if line.startswith("| ")][1:]
    assert table == [
        "| a | b | 3 of 3 | 30.0 / 29.0 |  |",
        "|  | c | 1 of 3 | 20.0 / 20.0 | in float: no kernel |",
        "| d | e | – | – | refused: it is not one |",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS, ids=lambda each: each.id)
def test_none_crashes_and_none_is_silently_in_float(network):
    row = outcome(network)
    assert not row.crashed
    assert bool(row.reasons) == bool(row.floating)
    # Kandinsky 3 with random weights has 11 dB on both backends, all others 24 dB or more.
    assert row.refused or min(row.reference_db, row.native_db) > (10 if network.id == "Kandinsky: 3" else 20)
