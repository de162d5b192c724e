"""A pipeline of random weights is one that `qdiff` reads from a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.networks import get_network
from benchmarks.offline_pipeline import main, offline_pipeline
from qdiff_fx.sources import SampleRequest, resolve


def test_it_is_read_from_its_folder_and_draws(tmp_path: Path) -> None:
    main("sd-tiny", tmp_path / "pipeline")
    source = resolve(str(tmp_path / "pipeline"))
    expected = get_network("sd-tiny").build(False).state_dict()
    found = source.unet.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    data = source.calibration_data(SampleRequest(2, 2), every=1, progress=False)
    assert sum(len(batch["sample"]) for batch in data) == 2 * 2 * 2  # guided
    assert all(bool(batch["sample"].isfinite().all()) for batch in data)


@pytest.mark.parametrize("name", ["cifar10", "sdxl-tiny"])
def test_only_networks_of_its_kind(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is not a network of Stable Diffusion's kind"):
        offline_pipeline(name)
