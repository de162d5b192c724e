"""The fuzzer of folders itself: what it starts from runs, what it changes differs, and a few of its trials."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.base_folders import write_small
from tests.fuzz.folders import outcome, trial


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    write_small(folder)
    return folder


@pytest.mark.slow
def test_what_it_starts_from_runs(bases: Path) -> None:
    assert {folder.name: outcome(folder) for folder in bases.iterdir()} == dict.fromkeys(
        ("mixed", "crafted"), ("ran", "")
    )


@pytest.mark.slow
def test_a_few_trials(bases: Path, tmp_path: Path) -> None:
    came = set()
    for number in range(24):
        folder, changes = trial(bases, tmp_path, 0, number)
        far, fault = outcome(folder)
        assert not fault, changes
        came.add(far)
    assert {"refused", "ran"} <= came


def test_a_trial_repeats(bases: Path, tmp_path: Path) -> None:
    said = {trial(bases, tmp_path, 5, 7)[1] for _ in range(2)}
    assert len(said) == 1
