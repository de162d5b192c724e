"""What is tried is what pyproject.toml claims."""

from __future__ import annotations

from tests.versions.__main__ import table
from tests.versions.combinations import EXTRAS, PROJECT, combinations, lower_bounds, pythons


def test_every_dependency_has_a_lower_bound_and_is_tried_at_it() -> None:
    asked = [*PROJECT["dependencies"], *(each for extra in EXTRAS for each in PROJECT["optional-dependencies"][extra])]
    assert [each.split("==")[0] for each in lower_bounds()] == [each.split(">=")[0] for each in asked]
    assert "torch==2.11" in lower_bounds()


def test_every_python_is_tried_the_first_with_the_oldest_versions() -> None:
    tried = combinations()
    assert [each.python for each in tried] == pythons() == ["3.11", "3.12", "3.13"]
    assert tried[0].pins == lower_bounds()
    assert tried[-1].pins == ()


def test_the_table_says_what_fails() -> None:
    found = {
        "oldest": {"versions": {"torch": "2.11.0"}, "results": {"export": "", "digits": "KernelError: no compiler"}},
        "newest": {"versions": {}, "results": {"install": "no such version"}},
    }
    lines = table(found).splitlines()
    assert lines[2] == "| oldest | 2.11.0 | works | fails | – |"
    assert lines[-2:] == ["oldest, digits: KernelError: no compiler", "newest, install: no such version"]
