"""JSON is written whole, and says null where JSON has no number."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.output import number, print_table, write_json


def test_json_has_no_infinities(tmp_path: Path) -> None:
    write_json([{"a": math.inf, "steps": (1.0, math.nan), "name": "x"}], tmp_path / "new" / "rows.json")
    assert json.loads((tmp_path / "new" / "rows.json").read_text()) == [{"a": None, "steps": [1.0, None], "name": "x"}]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    write_json([{"a": 1}], path)
    with pytest.raises(TypeError):
        write_json([{"a": object()}], path)
    assert json.loads(path.read_text()) == [{"a": 1}]
    assert list(tmp_path.iterdir()) == [path]


def test_a_table_shows_figures_dashes_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        SimpleNamespace(model="m", backend="fast", seconds=0.1234, error=""),
        SimpleNamespace(model="m", backend="broken", seconds=None, error="ValueError: [red] herring"),
    ]
    print_table("steps", {"backend": ("backend", str), "s": ("seconds", number(3))}, rows, caption="median of 7")
    shown = capsys.readouterr()
    assert "0.123" in shown.out
    assert "–" in shown.out
    assert "median of 7" in shown.out
    assert "m on broken: ValueError: [red] herring" in shown.err
