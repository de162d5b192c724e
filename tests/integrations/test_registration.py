"""diffusers' tables have our entries, whichever is imported first; and the finder that saw to it is gone."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from qdiff_fx.integrations import registration
from qdiff_fx.integrations.registration import TABLES, install

TABLE = "diffusers.pipelines.pipeline_loading_utils"


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "first", [pytest.param("import qdiff_fx", marks=pytest.mark.slow), "import diffusers.quantizers.auto"]
)
def test_in_either_order(first: str) -> None:
    code = f"""{first}
import qdiff_fx, sys
from qdiff_fx.integrations.registration import TABLES
if not {first!r}.endswith("auto"):
    assert "diffusers" not in sys.modules
import diffusers.quantizers.auto as auto, {TABLE} as loading
print(auto.AUTO_QUANTIZATION_CONFIG_MAPPING["qdiff_fx"].__name__, loading.LOADABLE_CLASSES["qdiff_fx"]["QuantizedUNet"])
print([each for each in sys.meta_path if "qdiff_fx.integrations" in type(each).__module__])
print(type(loading.__loader__).__name__, type(loading.__spec__.loader).__name__)
"""
    entries, finders, loaders = run(code).splitlines()
    assert entries == "QDiffConfig ['save_pretrained', 'from_pretrained']"
    assert finders == "[]"
    assert loaders == "SourceFileLoader SourceFileLoader"


@pytest.fixture
def unimported(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A module with no table, in place of diffusers'."""
    folder = tmp_path_factory.mktemp("path")
    (folder / "without_table.py").write_text("ANSWER = 42\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.delitem(sys.modules, "without_table", raising=False)
    return "without_table"


def test_a_version_without_the_table_is_imported_and_said(unimported: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "TABLES", {unimported: TABLES[TABLE]})
    install()
    with pytest.warns(UserWarning, match="does not fit this version of diffusers.*save_qdiff"):
        module = importlib.import_module(unimported)
    assert module.ANSWER == 42


def test_what_is_looked_for_and_not_there_stays_an_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(registration, "TABLES", {"no_such_module_at_all": TABLES[TABLE]})
    install()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_module_at_all")


def test_what_is_there_gets_its_entry_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    table = ModuleType("table")
    vars(table).update(LOADABLE_CLASSES={}, ALL_IMPORTABLE_CLASSES={})
    monkeypatch.setitem(sys.modules, "table", table)
    monkeypatch.setattr(registration, "TABLES", {"table": TABLES[TABLE]})
    before = list(sys.meta_path)
    install()
    assert sys.meta_path == before
    methods = {name: ["save_pretrained", "from_pretrained"] for name in registration.COMPONENTS}
    assert {"qdiff_fx": methods} == SimpleNamespace(**vars(table)).LOADABLE_CLASSES
