"""The cost of quantizing is printed phase by phase."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from benchmarks.networks import Network, get_network
from benchmarks.quantize_cost import Costs, Unfinished, main, prepare_from, stopped_after, write_shards
from qdiff_fx import load_qdiff
from qdiff_fx.capture.weights import with_weights


class Tiny(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return self.conv(sample) + timestep[:, None, None, None]


def tiny(meta: bool) -> torch.nn.Module:
    with torch.device("meta" if meta else "cpu"):
        return Tiny().eval()


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    found = Network("tiny", tiny, batch=2, sample_shape=(4, 8, 8))
    monkeypatch.setattr("benchmarks.quantize_cost.get_network", lambda name: found)
    return found


@pytest.mark.parametrize(
    ("rounding", "phase"), [("nearest", "ranges and nearest codes"), ("second_order", "round weights, 6 rows")]
)
def test_every_phase_has_a_row(network: Network, tmp_path: Path, rounding: str, phase: str) -> None:
    main("tiny", weight_bits=4, threads=0, rounding=rounding, rows=6, shards=None, json=tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["phase"] for row in rows] == [
        "a float32 step",
        "prepare",
        "calibrate, 6 rows",
        phase,
        "convert",
        "save",
        "everything",
    ]
    assert rows[-1]["processor"] == pytest.approx(sum(row["processor"] for row in rows[1:-1]))
    assert rows[0]["steps"] is None
    for row in rows[1:]:
        assert row["steps"] * rows[0]["processor"] == pytest.approx(row["processor"])


def test_nncf_does_the_same_work(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs the bench extra")
    pytest.importorskip("nncf", reason="needs the bench extra")
    main("sd-tiny", by="nncf", samples=2, json=tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["phase"] for row in rows] == [
        "a float32 step",
        "NNCF, default, 2 samples",
        "NNCF, transformer, 2 samples",
    ]
    assert all(row["steps"] > 0 for row in rows[1:])


def test_nncf_is_stopped_where_it_takes_too_long(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs the bench extra")
    pytest.importorskip("nncf", reason="needs the bench extra")
    main("sd-tiny", by="nncf", samples=2, at_most=1e-3, json=tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["phase"] for row in rows[1:]] == [
        "NNCF, default, 2 samples: not finished",
        "NNCF, transformer, 2 samples: not finished",
    ]


def test_work_is_stopped_after_its_seconds_and_no_other_is() -> None:
    with pytest.raises(Unfinished), stopped_after(0.05):
        _spend(60)
    with stopped_after(0.05):
        pass
    _spend(0.1)


def test_shards_hold_the_random_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.quantize_cost.SHARD_BYTES", 10_000)
    network = get_network("sd-tiny")
    write_shards(network, tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    found = with_weights(network.build(True), tmp_path / "shards").state_dict()
    for name, tensor in network.build(False).state_dict().items():
        assert torch.equal(found[name], tensor), name


def test_preparing_from_shards_is_one_phase(network: Network, tmp_path: Path) -> None:
    costs = Costs()
    prepare_from(tmp_path / "shards", network, costs)
    assert [row.phase for row in costs.rows] == ["import and build", "prepare"]
    assert all(row.peak > 0 for row in costs.rows)


@pytest.mark.slow
def test_what_is_saved_from_shards_runs_at_the_whole_size(network: Network, tmp_path: Path) -> None:
    rows, saved = tmp_path / "rows.json", tmp_path / "saved"
    main("tiny", weight_bits=4, shards=tmp_path / "shards", saved=saved, json=rows)
    phases = [row["phase"] for row in json.loads(rows.read_text())]
    assert phases == ["import and build", "prepare", "calibrate, one batch", "convert", "save"]
    loaded = load_qdiff(saved)
    bits = [layer.info.weight_bits for layer in loaded.explain().rows]
    assert bits == [8, 8]  # the only layer, and what is left over of its input
    assert loaded(**network.inputs()).shape == (2, 4, 8, 8)


def _spend(seconds: float) -> None:
    """So much of the processor's time."""
    begin = time.process_time()
    while time.process_time() < begin + seconds:
        pass
