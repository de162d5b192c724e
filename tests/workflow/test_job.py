"""What a job is, and the folder that belongs to it alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qdiff_fx.config import QDiffConfig, Rule
from qdiff_fx.errors import ArtifactError, ConfigError
from qdiff_fx.reconstruction import ReconstructionConfig
from qdiff_fx.sources import DigitsSource, SampleRequest, Source
from qdiff_fx.tuning.finer import Limits
from qdiff_fx.workflow.job import Job, WantedPart, WorkFolder

JOB = Job(QDiffConfig(), SampleRequest(4, 3))


@pytest.fixture(scope="module")
def source() -> Source:
    return DigitsSource()


def test_begun_again_it_is_the_same_folder(source: Source, tmp_path: Path) -> None:
    first, second = (WorkFolder(tmp_path / "kept", source, JOB) for _ in range(2))
    assert first.samples == second.samples == tmp_path / "kept" / "samples"
    assert len({first.samples, first.statistics, first.rounding, first.units}) == 4


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (replace(JOB, request=SampleRequest(4, 3, seed=1)), "seed"),
        # Other samples show other digits.
        (replace(JOB, request=SampleRequest(5, 3)), "number of samples and another set of prompts or labels"),
        (replace(JOB, rows=3), "number of rows"),
        (replace(JOB, every=2), "every"),
        (replace(JOB, at_most=True), "number of samples at most"),
        (replace(JOB, config=QDiffConfig(weight_bits=4)), "weight_bits"),
        (replace(JOB, config=QDiffConfig(rules=(Rule("a", weight_bits=4),))), "rules"),
        (replace(JOB, parts=(WantedPart("vae", QDiffConfig(), Limits()),)), "parts"),
        (replace(JOB, reconstruction=ReconstructionConfig.fast()), "reconstruction"),
    ],
)
def test_another_job_is_refused_by_what_differs(source: Source, tmp_path: Path, other: Job, named: str) -> None:
    WorkFolder(tmp_path, source, JOB)
    with pytest.raises(ArtifactError, match=f"it was begun with another {named}\\. Give the folder of this run"):
        WorkFolder(tmp_path, source, other)


def test_what_was_chosen_once_stays_where_it_is_kept(source: Source, tmp_path: Path) -> None:
    given = iter([{"bits": 4}, {"bits": 5}, {"bits": 6}, {"bits": 7}])
    assert [WorkFolder(tmp_path, source, JOB).chosen_once("a", lambda: next(given)) for _ in range(2)] == [
        {"bits": 4}
    ] * 2
    assert WorkFolder(tmp_path, source, JOB).chosen_once("b", lambda: next(given)) == {"bits": 5}
    nowhere = WorkFolder(None, source, JOB)
    assert [nowhere.chosen_once("a", lambda: next(given))["bits"] for _ in range(2)] == [6, 7]


def test_another_network_and_another_number_of_processes_are_refused(tmp_path: Path) -> None:
    source = DigitsSource()
    WorkFolder(tmp_path, source, JOB)
    with pytest.raises(ArtifactError, match="another number of processes"):
        WorkFolder(tmp_path, source, JOB, processes=2)
    next(source.unet.parameters()).data[0] += 1e-3
    with pytest.raises(ArtifactError, match="another weights of unet"):
        WorkFolder(tmp_path, source, JOB)


def test_something_else_is_refused(source: Source, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="it holds something else"):
        WorkFolder(tmp_path, source, JOB)


def test_without_a_folder_nothing_is_kept(source: Source, tmp_path: Path) -> None:
    folder = WorkFolder(None, source, JOB, samples=tmp_path)
    assert folder.samples == tmp_path
    assert folder.statistics is folder.units is None


@pytest.mark.parametrize("changes", [{"rows": 0}, {"rows": -1}])
def test_no_rows_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="rows: .* is not a positive number"):
        replace(JOB, **changes)
