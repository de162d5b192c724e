"""What importing the package brings along: nothing that takes long, nothing that may be missing."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

import qdiff_fx

HEAVY = {
    *("torch._inductor", "torch._dynamo", "torch.utils.cpp_extension", "sympy", "setuptools"),
    *("matplotlib", "scipy", "diffusers", "transformers", "rich", "typer", "PIL"),
}
BACKENDS = {f"qdiff_fx.backends.{name}" for name in ("reference", "native", "inductor", "torch_ao")}


def imported_by(code: str) -> set[str]:
    """The modules that some lines import beside what ``import torch`` imports, in a process of their own."""
    script = f"import sys, torch\nbefore = set(sys.modules)\n{code}\nprint(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_imports_nothing_else():
    imported = imported_by("import qdiff_fx")
    integrations = {"qdiff_fx.integrations", "qdiff_fx.integrations.registration"}
    assert {name for name in imported if name.split(".")[0] != "__future__"} == {"qdiff_fx", *integrations}


def test_public_names_bring_no_backend_and_nothing_heavy():
    names = "prepare_qdiff, convert_qdiff, save_qdiff, load_qdiff, calibrate, round_weights, reconstruct, tune"
    imported = imported_by(f"from qdiff_fx import {names}")
    assert "qdiff_fx.backends.registry" in imported
    assert not imported & (HEAVY | BACKENDS)


def test_the_command_line_brings_nothing_heavy():
    """Help and completion are to come at once."""
    imported = imported_by("import qdiff_fx.cli")
    assert not imported & (HEAVY - {"rich", "typer", "PIL"})


@pytest.mark.parametrize(
    ("backend", "brings"),
    [
        pytest.param("reference", "reference", marks=pytest.mark.slow),
        ("native", "native"),
        pytest.param("inductor", "inductor", marks=pytest.mark.slow),
    ],
)
def test_a_backend_brings_itself_only(backend, brings):
    imported = imported_by(f"from qdiff_fx.backends import get_backend\nget_backend({backend!r})")
    assert imported & BACKENDS == {f"qdiff_fx.backends.{brings}"}
    assert ("torch._inductor" in imported) == (backend == "inductor")


def test_every_public_name_is_there_and_listed():
    assert {name: getattr(qdiff_fx, name) for name in qdiff_fx.__all__}
    assert set(qdiff_fx.__all__) <= set(dir(qdiff_fx))
    assert set(qdiff_fx.__all__) == set(qdiff_fx._HOME_OF)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        getattr(qdiff_fx, "quantise")  # noqa: B009


@pytest.mark.parametrize("home", sorted(qdiff_fx._HOMES))
def test_type_checkers_see_the_same_names(home):
    from pathlib import Path

    text = Path(qdiff_fx.__file__).read_text()
    assert textwrap.dedent(f"from qdiff_fx.{home} import {', '.join(qdiff_fx._HOMES[home])}\n") in text
