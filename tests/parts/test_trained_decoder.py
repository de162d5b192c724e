"""A trained decoder, judged by what people see: its pictures beside those of the float decoder."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from benchmarks.artifacts import artifact_folder, ensure_artifact
from benchmarks.decoder import Judge
from benchmarks.decoders import DECODERS
from benchmarks.lineup import get_contender
from qdiff_fx import load_qdiff
from qdiff_fx.report.bits import bits_of_layers

ENOUGH = {"w8a8": 45.0, "w4a8": 36.0}
"""dB, mean over pictures that were not calibrated on."""


@pytest.mark.slow
@pytest.mark.parametrize("bits", ENOUGH)
def test_pictures_of_a_trained_tiny_decoder(bits: str, tmp_path: Path) -> None:
    try:
        judge = Judge(None)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    contender = get_contender(f"native-{bits}-secondorder")
    for name in ("taef2-256", "taef2-512"):  # of the same weights, calibrated once
        decoder = DECODERS[name]
        ensure_artifact(tmp_path, decoder, contender, judge.batches())
        folder = artifact_folder(tmp_path, decoder, contender)
        assert folder is not None
        assert statistics.fmean(judge.psnrs(decoder, contender.load(decoder, folder))) > ENOUGH[bits]
    found = bits_of_layers(load_qdiff(folder, backend="reference").graph_module)
    assert found.weights <= int(bits[1]) * 1.15  # those that were configured are a little more: edges have 8
