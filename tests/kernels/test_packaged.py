"""Libraries that a package brings: used without a compiler, and refused with a reason where they do not fit."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from qdiff_fx.errors import KernelError
from qdiff_fx.kernels import build, dispatch, libraries, status
from qdiff_fx.kernels.build import OPERATORS, Recipe, isas_of, kernels_of
from qdiff_fx.kernels.isa import ISAS, choose_isa

ROOT = Path(__file__).parents[2]
needs_kernels = pytest.mark.skipif(not status().available, reason=status().reason or "-")

CALL = """
import sys, torch
from pathlib import Path
from qdiff_fx.kernels import dispatch, status
dispatch.PACKAGED = Path(sys.argv[1])
codes, sums = torch.ops.qdiff.pack_weight(torch.ones(3, 5, dtype=torch.int8), 8)
state = status()
print(state.kernel, state.source, codes.numel(), sums[:3].tolist())
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a package, with the libraries that run here."""
    here = status()
    assert here.library is not None
    assert here.operators is not None
    folder = tmp_path / "lib"
    folder.mkdir()
    shutil.copyfile(here.library, folder / f"libqdiff_{here.kernel}.so")
    shutil.copyfile(here.operators, folder / OPERATORS.file)
    monkeypatch.setattr(dispatch, "PACKAGED", folder)
    return folder


def here() -> Recipe:
    return kernels_of(choose_isa(status().kernel))


def refusal(path: Path, recipe: Recipe) -> str:
    with pytest.raises(KernelError) as error:
        libraries.load(path, recipe)
    return str(error.value)


@needs_kernels
def test_they_are_used_without_a_compiler(package: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    done = subprocess.run(
        [sys.executable, "-c", CALL, str(package)],
        env={
            **{"CXX": "/nonexistent", "PATH": str(tmp_path), "QDIFF_KERNELS_CACHE": str(cache)},
            **{"QDIFF_KERNELS": status().kernel, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(" ", 1) == [status().kernel, "the package 128 [5, 5, 5]\n"]
    assert not cache.exists()


@needs_kernels
@pytest.mark.parametrize("which", ["kernels", "operators"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "file too short"), (b"not a library" * 99, "invalid ELF header"), (None, "No such file")],
)
def test_what_is_none_is_refused_and_another_found(
    package: Path, which: str, content: bytes | None, reason: str
) -> None:
    spoilt = package / (OPERATORS.file if which == "operators" else here().file)
    spoilt.unlink()
    if content is not None:
        spoilt.write_bytes(content)
    with pytest.warns(RuntimeWarning, match=f"package's compiled kernels are not used: .*{spoilt.name}.*"):
        assert dispatch._packaged(here()) is None
    assert reason.lower() in refusal(spoilt, OPERATORS if which == "operators" else here()).lower()


@needs_kernels
def test_one_of_another_version_is_refused(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dispatch._packaged(here()) is not None
    monkeypatch.setattr(libraries, "sources_version", lambda: 1)
    for recipe in (here(), OPERATORS):
        assert "made of other sources than these, by another version" in refusal(package / recipe.file, recipe)
    with pytest.warns(RuntimeWarning, match="another version"):
        assert dispatch._packaged(here()) is None


@needs_kernels
def test_one_of_something_else_is_refused(package: Path) -> None:
    assert "no library of qdiff_fx's kernels" in refusal(package / OPERATORS.file, here())
    assert "no library of qdiff_fx's kernels" in refusal(package / here().file, OPERATORS)


@needs_kernels
def test_operators_take_no_kernels_of_another_version(package: Path) -> None:
    """The last line: what is passed to them says itself of what version it is."""
    operators = libraries.load(package / OPERATORS.file, OPERATORS)
    foreign = libraries._Library(version=1, kernels=0)
    begin = operators.handle.qdiff_start
    begin.restype, begin.argtypes = libraries.ctypes.c_char_p, [libraries.ctypes.POINTER(libraries._Library)]
    assert b"of different versions" in begin(libraries.ctypes.byref(foreign))


def test_flags_of_the_user_are_for_libraries_of_his_own(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build._FLAGS, "-O1")
    assert dispatch._packaged(here()) is None


def test_a_package_has_every_set_of_its_machine() -> None:
    names = {machine: [isa.name for isa in isas_of(machine)] for machine in ("x86_64", "aarch64", "riscv64")}
    assert names["riscv64"] == ["portable"]
    assert set(names["x86_64"]) | set(names["aarch64"]) == {isa.name for isa in ISAS}
    assert set(names["x86_64"]) & set(names["aarch64"]) == {"portable"}


def test_every_source_is_in_some_library() -> None:
    sources = {str(path.relative_to(build._FOLDER)) for path in build._FOLDER.rglob("*.cpp")}
    assert sources == {source for recipe in (OPERATORS, *map(kernels_of, ISAS)) for source in recipe.sources}


@pytest.mark.slow
@needs_kernels
def test_a_wheel_brings_them(tmp_path: Path) -> None:
    """Built as `make wheel` does, in a copy of the checkout; installed, it runs without a compiler."""
    checkout = tmp_path / "checkout"
    for name in ("qdiff_fx", "pyproject.toml", "setup.py", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        checkout.mkdir(exist_ok=True)
        copy(ROOT / name, checkout / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(checkout)]
    environment = {**os.environ, "QDIFF_WHEEL": platform.machine(), "PYTHONPATH": str(checkout)}
    subprocess.run([*pip, "wheel", *options], env=environment, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert "-py3-none-manylinux_2_" in wheel.name
    assert wheel.name.endswith(f"_{platform.machine()}.whl")
    with zipfile.ZipFile(wheel) as packed:
        model = sum(each.compress_size for each in packed.infolist() if "/bundled/" in each.filename)
        brought = {Path(each.filename).name for each in packed.infolist() if each.filename.endswith(".so")}
    assert wheel.stat().st_size - model < 6e6
    assert brought == {OPERATORS.file, *(kernels_of(isa).file for isa in isas_of(platform.machine()))}
    subprocess.run([*pip, "install", "--no-deps", "--target", str(tmp_path / "site"), str(wheel)], check=True)
    folder = tmp_path / "site" / "qdiff_fx" / "kernels" / "lib"
    done = subprocess.run(
        [sys.executable, "-c", CALL, str(folder)],
        env={
            "CXX": "/nonexistent",
            "PATH": str(tmp_path),
            "PYTHONPATH": str(tmp_path / "site"),
            "OMP_NUM_THREADS": "1",
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "the package" in done.stdout
