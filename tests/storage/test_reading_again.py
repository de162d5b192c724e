"""A network on `native` reads its folder again for another backend: the same folder, or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qdiff_fx import QDiffConfig, QuantizedUNet, calibrate, convert_qdiff, load_qdiff, prepare_qdiff, save_qdiff
from qdiff_fx.errors import ArtifactError

X = {"x": torch.linspace(-2, 2, 128).reshape(1, 2, 8, 8)}


class Two(nn.Module):
    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.last(F.silu(self.first(x)))


def quantized(seed: int) -> QuantizedUNet:
    prepared = prepare_qdiff(Two(seed).eval(), QDiffConfig(weight_bits=4), X)
    calibrate(prepared, [X], progress=False)
    return convert_qdiff(prepared, "reference")


def test_the_working_directory_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    network = quantized(0)
    save_qdiff(network, "saved")
    loaded = load_qdiff("saved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert torch.equal(loaded.with_backend("reference")(**X), network(**X))


@pytest.mark.parametrize("use", [lambda net: net.with_backend("reference"), lambda net: net.graph_module])
def test_another_network_in_its_place_is_noticed(tmp_path: Path, use):
    folder = save_qdiff(quantized(0), tmp_path / "saved")
    loaded = load_qdiff(folder)
    before = loaded(**X)
    save_qdiff(quantized(1), folder)
    with pytest.raises(ArtifactError, match="another network than the one that was loaded"):
        use(loaded)
    assert torch.equal(loaded(**X), before)


def test_saving_does_not_save_another_network(tmp_path: Path):
    folder = save_qdiff(quantized(0), tmp_path / "saved")
    loaded = load_qdiff(folder)
    save_qdiff(quantized(1), folder)
    with pytest.raises(ArtifactError, match="another network"):
        save_qdiff(loaded, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_folder_that_has_gone_is_said(tmp_path: Path):
    folder = save_qdiff(quantized(0), tmp_path / "saved")
    loaded = load_qdiff(folder)
    shutil.move(folder, tmp_path / "moved")
    with pytest.raises(ArtifactError, match="does not exist") as caught:
        loaded.with_backend("reference")
    assert "needs it again" in "".join(caught.value.__notes__)
