"""How close a network stays, from one process and from several that share the images."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from in_threads import in_threads

from qdiff_fx import QDiffConfig, QuantizedUNet, calibrate, convert_qdiff, prepare_qdiff
from qdiff_fx.evaluation import eps_sqnr, psnr_db, sqnr_db
from qdiff_fx.sources import SampleRequest, Source, resolve
from qdiff_fx.workflow.compare import _ratio_db, compare

CUSTOM = Path(__file__).parents[2] / "examples" / "custom_unet.py"
REQUEST = SampleRequest(3, 3, seed=2)


@pytest.fixture(scope="module")
def source() -> Source:
    found = resolve(str(CUSTOM))
    found.progress = False
    return found


@pytest.fixture(scope="module")
def quantized(source: Source) -> QuantizedUNet:
    data = source.calibration_data(SampleRequest(2, 3), every=1, progress=False)
    config = QDiffConfig(num_train_timesteps=source.num_train_timesteps, weight_rounding="nearest")
    prepared = prepare_qdiff(source.unet, config, data[0])
    calibrate(prepared, data, progress=False)
    return convert_qdiff(prepared)


def test_it_is_what_the_parts_of_evaluation_say(source: Source, quantized: QuantizedUNet) -> None:
    found = compare(quantized, source, REQUEST)
    trajectory = source.trajectory(REQUEST)
    reference = quantized.with_backend("reference")
    assert set(found.eps) == {"native", "reference"}
    assert found.eps["native"] == pytest.approx(eps_sqnr(quantized, trajectory))
    assert found.eps["reference"] == pytest.approx(eps_sqnr(reference, trajectory))
    assert found.images == pytest.approx(psnr_db(source.sample(quantized, REQUEST), trajectory.final))
    assert found.timesteps == [float(torch.as_tensor(step.timestep).reshape(-1)[0]) for step in trajectory.steps]
    assert min(found.agreement) > 30


@pytest.mark.parametrize(("count", "parts"), [(2, [(0, 1), (1, 2)]), (4, [(0, 1), (1, 1), (2, 1)])])
def test_several_processes_share_the_images(
    source: Source, quantized: QuantizedUNet, count: int, parts: list[tuple[int, int]]
) -> None:
    shared = in_threads(count, lambda workers: compare(quantized, source, REQUEST, workers=workers))
    assert all(each == shared[0] for each in shared)
    # A batch of other images rounds floats in another order: of the same batches it is the same.
    alone = [compare(quantized, source, SampleRequest(images, 3, 2, first)) for first, images in parts]
    expected = sum(each.images * images for each, (_, images) in zip(alone, parts, strict=True)) / REQUEST.count
    assert shared[0].images == pytest.approx(expected)
    assert shared[0].timesteps == alone[0].timesteps
    for name, found in shared[0].eps.items():
        for step, value in enumerate(found):
            each = [part.eps[name][step] for part in alone]
            assert min(each) <= value <= max(each)


def test_powers_become_the_decibels_of_all_numbers() -> None:
    one, other = torch.randn(2, 50), torch.randn(2, 50)
    powers = float(one.double().square().sum()), float((other.double() - one.double()).square().sum())
    assert _ratio_db(*powers) == pytest.approx(sqnr_db(one, other))
    assert _ratio_db(1.0, 0.0) == math.inf
    assert _ratio_db(0.0, 1.0) == -math.inf
