"""Rows, groups and ratios of the step benchmark, with workers that only pretend."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

from benchmarks.networks import Network, Work, get_network
from benchmarks.output import write_json
from benchmarks.timing import WorkerError
from benchmarks.unet_step import ANCHOR, Plan, StepRow, best_rows, groups, measure

REQUIRED = {"model", "backend", "batch", "seconds", "gflop", "gops", "peak_rss_bytes"}
SECONDS = {ANCHOR: 0.8, "inductor": 0.2, "openvino-int8-default-f32": 0.4, "openvino-int8-default-bf16": 0.1}


@pytest.fixture(autouse=True)
def counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Network, "work", lambda network: Work(0.1, 0.03))


class FakeWorker:
    def __init__(self, name: str, plan: "FakePlan"):
        self.name, self.plan = name, plan

    def _do(self, what: str) -> None:
        self.plan.journal.append((what, self.name))
        if self.plan.failures.get(self.name) == what:
            raise WorkerError(f"{what} failed")

    def prepare(self) -> None:
        self._do("prepare")

    def start(self) -> dict[str, float]:
        self._do("start")
        return {"load_seconds": 1.0, "first_step_seconds": 2.0}

    def step(self) -> dict[str, float]:
        self._do("step")
        return {"seconds": SECONDS.get(self.name, 0.5), "idle_cpu_seconds": 0.0}

    def stop(self) -> dict[str, int]:
        self._do("stop")
        return {"peak_rss_bytes": 1000, "resident_rss_bytes": 900}

    def close(self) -> None:
        self.plan.journal.append(("close", self.name))


@dataclass(frozen=True)
class FakePlan(Plan):
    failures: dict[str, str] = field(default_factory=dict)
    journal: list[tuple[str, str]] = field(default_factory=list)

    def worker(self, network, name):
        return FakeWorker(name, self)


def plan(together: int | None = None, **failures: str) -> FakePlan:
    renamed = {name.replace("_", "-"): step for name, step in failures.items()}
    return FakePlan(Path(), rounds=3, warmup=1, threads=1, together=together, failures=renamed)


@pytest.mark.parametrize(
    ("names", "together", "expected"),
    [
        (["a", "b", "c"], 16, [[ANCHOR, "a", "b", "c"]]),
        (["a", "b", "c"], 3, [[ANCHOR, "a", "b"], [ANCHOR, "c"]]),
        (["a", ANCHOR, "b"], 2, [[ANCHOR, "a"], [ANCHOR, "b"]]),
        (["a", "b"], 1, [[ANCHOR, "a"], [ANCHOR, "b"]]),
        ([ANCHOR], 4, [[ANCHOR]]),
    ],
)
def test_every_group_is_led_by_the_anchor(names: list[str], together: int, expected: list[list[str]]) -> None:
    assert list(groups(names, together)) == expected


def test_rows_have_the_documented_fields_and_survive_json(tmp_path: Path) -> None:
    rows = measure(get_network("sd-tiny"), ["inductor"], plan())
    assert [row.backend for row in rows] == [ANCHOR, "inductor"]
    write_json([asdict(row) for row in rows], tmp_path / "rows.json")
    for row in json.loads((tmp_path / "rows.json").read_text()):
        assert set(row) >= REQUIRED
        assert all(row[name] is not None for name in REQUIRED)


def test_figures_follow_from_the_seconds() -> None:
    row = measure(get_network("sd-tiny"), ["inductor"], plan())[1]
    assert (row.seconds, row.runs, row.speedup) == (0.2, 3, 4.0)
    assert row.gops == pytest.approx(row.gflop / 0.2)
    assert row.peak_rss_bytes == 1000


def test_steps_are_interleaved_and_every_process_is_closed() -> None:
    measured = plan()
    measure(get_network("sd-tiny"), ["inductor"], measured)
    steps = [name for what, name in measured.journal if what == "step"]
    assert steps == [ANCHOR, "inductor"] * 3
    assert measured.journal[-2:] == [("close", ANCHOR), ("close", "inductor")]


@pytest.mark.parametrize("moment", ["prepare", "start", "step"])
def test_a_failure_is_a_row_with_its_reason(moment: str) -> None:
    anchor, failed, fine = measure(get_network("sd-tiny"), ["inductor", "reference"], plan(inductor=moment))
    assert failed.backend == "inductor"
    assert failed.error == f"{moment} failed"
    assert failed.seconds is None
    assert anchor.seconds is not None
    assert fine.seconds is not None


def test_without_an_anchor_there_is_no_ratio() -> None:
    rows = measure(get_network("sd-tiny"), ["inductor"], plan(torch_fp32="start"))
    assert rows[1].seconds == 0.2
    assert rows[1].speedup is None


def test_groups_keep_one_anchor_row() -> None:
    rows = measure(get_network("sd-tiny"), ["inductor", "reference"], plan(together=2))
    assert [row.backend for row in rows] == [ANCHOR, "inductor", "reference"]


def test_an_alias_is_the_row_of_its_fastest_member() -> None:
    rows = measure(get_network("sd-tiny"), ["openvino-int8"], plan())
    assert rows[-1].backend == "openvino-int8"
    assert rows[-1].best == "openvino-int8-default-bf16"
    assert rows[-1].seconds == 0.1
    assert len(rows) == 6


def test_an_alias_whose_members_all_failed_has_no_row() -> None:
    failed = StepRow("sd-tiny", "x", 2, 1.0, 0.0, 1, error="no")
    names = [f"openvino-int8-{preset}-{hint}" for preset in ("default", "transformer") for hint in ("f32", "bf16")]
    assert list(best_rows(["openvino-int8"], dict.fromkeys(names, failed))) == []
