"""A trained decoder, judged by what people see: its pictures beside those of the float decoder."""

from __future__ import annotations

import statistics

import pytest
import torch

import qdiff_fx
from benchmarks.networks import shared_module
from benchmarks.pictures import find_pictures, load_pictures
from qdiff_fx.calibration import CalibrationData
from qdiff_fx.evaluation import psnr_db

SIZE = 256
ENOUGH = {"w8a8": 42.0, "w4a8": 27.0}
"""dB, mean over pictures that were not calibrated on."""


@pytest.mark.slow
def test_pictures_of_a_trained_tiny_decoder() -> None:
    try:
        trained, (known, held_out) = shared_module("taef2"), find_pictures(None)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    encoder, decoder = trained.load_encoder(), trained.load_decoder()
    with torch.no_grad():
        latents = [encoder(picture) for picture in load_pictures(known, SIZE)]
        judged = [encoder(picture) for picture in load_pictures(held_out, SIZE)]
        expected = [decoder(each).clamp(0, 1) * 2 - 1 for each in judged]
    data = CalibrationData([{"input": each} for each in latents])
    for bits, enough in ENOUGH.items():
        quantized = qdiff_fx.quantize(decoder, bits, data, budget=None, progress=False)
        found = [quantized(each).clamp(0, 1) * 2 - 1 for each in judged]
        assert statistics.fmean(map(psnr_db, found, expected)) > enough
