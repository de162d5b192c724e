"""Prepared networks appear complete or not at all, and are made once."""

from collections.abc import Iterable
from pathlib import Path

import pytest
from torch import nn

from benchmarks.artifacts import CALIBRATION_BATCHES, artifact_folder, ensure_artifact
from benchmarks.contender import Batch
from benchmarks.lineup import get_contender
from benchmarks.networks import Network, get_network


class Recorder:
    """A contender that notes how it was prepared."""

    artifact = "recorded"

    def __init__(self, fails: bool = False):
        self.fails, self.prepared = fails, 0

    def prepare(self, unet: nn.Module, network: Network, batches: Iterable[Batch], folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        if self.fails:
            raise RuntimeError("no more disk")
        assert len(list(batches)) == CALIBRATION_BATCHES
        self.prepared += 1

    def load(self, network: Network, folder: Path):
        raise NotImplementedError


@pytest.fixture
def network() -> Network:
    return get_network("sd-tiny")


def test_prepared_once(tmp_path: Path, network: Network) -> None:
    contender = Recorder()
    for _ in range(2):
        ensure_artifact(tmp_path, network, contender)
    assert contender.prepared == 1
    assert (tmp_path / "sd-tiny" / "recorded" / "half.txt").is_file()


def test_a_failure_leaves_nothing_behind(tmp_path: Path, network: Network) -> None:
    with pytest.raises(RuntimeError, match="no more disk"):
        ensure_artifact(tmp_path, network, Recorder(fails=True))
    assert list((tmp_path / "sd-tiny").iterdir()) == []


def test_what_needs_no_preparation_has_no_folder(tmp_path: Path, network: Network) -> None:
    contender = get_contender("torch-fp32")
    assert artifact_folder(tmp_path, network, contender) is None
    ensure_artifact(tmp_path, network, contender)
    assert list(tmp_path.iterdir()) == []
