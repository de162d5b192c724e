"""Which libraries are loaded, and what happens where none can be kept: never another user's, never a raw error."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qdiff_fx.errors import KernelError
from qdiff_fx.kernels import cache, just_in_time, status
from qdiff_fx.kernels.build import CompilerError, kernels_of, key
from qdiff_fx.kernels.cache import VARIABLE, Cache, distrust, is_intact, open_cache
from qdiff_fx.kernels.isa import choose_isa

CONTENT = b"a library"
RECIPE = kernels_of(choose_isa("portable"))


def put(path: Path, content: bytes = CONTENT) -> Path:
    path.write_bytes(content)
    path.chmod(0o644)
    digest = path.with_suffix(".sha256")
    digest.write_text(hashlib.sha256(content).hexdigest())
    digest.chmod(0o644)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The chosen cache, empty, for us alone."""
    made = tmp_path / "cache"
    made.mkdir(mode=0o700)
    monkeypatch.setenv(VARIABLE, str(made))
    return made


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where libraries were built; loading does nothing but look at them."""
    made: list[Path] = []

    def compile_nothing(compiler: str, recipe: object, where: Path) -> Path:
        made.append(where)
        (where / "portable.so").write_bytes(CONTENT)
        return where / "portable.so"

    def look(path: Path, recipe: object) -> Path:
        if path.read_bytes() != CONTENT:
            raise KernelError("garbage")
        return path

    monkeypatch.setattr(just_in_time, "find_compiler", lambda: "g++")
    monkeypatch.setattr(just_in_time, "compiler_version", lambda compiler: "v1")
    monkeypatch.setattr(just_in_time, "build", compile_nothing)
    monkeypatch.setattr(just_in_time, "load", look)
    return made


def name(compiler: str = "v1") -> str:
    return f"qdiff_portable-{key(RECIPE)}-{compiler}.so"


def load(*, warned: str = "") -> Path:
    """What is loaded, with one warning or none; `look` stands in for loading."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found: Any = just_in_time.cached_or_built(RECIPE)
    assert [warned in str(each.message) for each in seen] == [True] * bool(warned)
    return found


class TestTrust:
    def test_an_intact_library_of_ours(self, tmp_path: Path) -> None:
        assert is_intact(put(tmp_path / "a.so"))

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda path: path.chmod(0o666),
            lambda path: path.chmod(0o664),
            lambda path: path.with_suffix(".sha256").chmod(0o646),
            lambda path: path.with_suffix(".sha256").write_bytes(b"\xff\xfe" * 32),
            lambda path: path.with_suffix(".sha256").unlink(),
            lambda path: path.write_bytes(CONTENT[:-1]),
            lambda path: (path.rename(path.with_name("b.so")), path.symlink_to("b.so")),
            lambda path: (path.unlink(), path.mkdir()),
            lambda path: (path.unlink(), os.mkfifo(path)),
        ],
        ids=["all", "group", "digest", "not-utf8", "no-digest", "truncated", "link", "folder", "pipe"],
    )
    def test_what_is_not(self, tmp_path: Path, spoil: Callable[[Path], object]) -> None:
        path = put(tmp_path / "a.so")
        spoil(path)
        assert not is_intact(path)

    def test_of_another_user(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whole, with its digest, and theirs: root's is fine, anybody else's is not."""
        path = put(tmp_path / "a.so")
        owner = path.stat().st_uid
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
        assert is_intact(path) == (owner == 0)
        if os.getuid() == 0:
            os.chown(path, 12345, 12345)
            assert not is_intact(path)
            assert distrust(path) == "belongs to another user (12345)"

    @pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
    def test_a_folder_that_others_can_write(self, folder: Path, mode: int) -> None:
        put(folder / name())
        folder.chmod(mode)
        with pytest.raises(KernelError, match=r"can be written by others.*QDIFF_KERNELS_CACHE"):
            open_cache()

    def test_a_folder_in_one_where_everybody_can_rename(self, folder: Path) -> None:
        folder.parent.chmod(0o777)
        with pytest.raises(KernelError, match="everybody can rename"):
            open_cache()

    def test_our_part_of_the_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Made for us alone; closed if it was open; no link."""
        monkeypatch.delenv(VARIABLE, raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        found = open_cache().folder
        assert found == tmp_path / "qdiff_fx" / "kernels"
        found.parent.chmod(0o777)
        assert [each.stat().st_mode & 0o777 for each in (open_cache().folder, found.parent)] == [0o700, 0o700]
        found.parent.rename(tmp_path / "elsewhere")
        found.parent.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(KernelError, match="is a symbolic link"):
            open_cache()

    def test_without_a_home(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_home() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv(VARIABLE, raising=False)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", no_home)
        with pytest.raises(KernelError, match="home directory"):
            open_cache()


class TestLoading:
    def test_built_once_and_kept_for_us_alone(self, folder: Path, builds: list[Path]) -> None:
        previous = os.umask(0o002)
        try:
            assert load() == load() == folder / name()
        finally:
            os.umask(previous)
        assert len(builds) == 1
        assert is_intact(folder / name())
        assert not list(folder.glob("build-*"))

    def test_a_cache_that_nobody_can_write(
        self, folder: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(folder / name())
        folder.chmod(0o555)
        monkeypatch.setattr(Cache, "writable", False)
        before = sorted(folder.iterdir())
        assert load() == folder / name()
        assert sorted(folder.iterdir()) == before
        assert not builds

    def test_a_baked_cache_without_a_compiler(
        self, folder: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(just_in_time, "find_compiler", lambda: "")
        with pytest.raises(KernelError, match="no C\\+\\+ compiler"):
            load()
        put(folder / name("of-the-image"))
        assert load() == folder / name("of-the-image")

    def test_a_cache_that_nobody_can_write_and_that_lacks_it(
        self, folder: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Cache, "writable", False)
        assert load(warned="compiled for this process alone").parent == builds[0]
        assert not builds[0].exists()

    @pytest.mark.parametrize("content", [CONTENT[:3], b"not a library"])
    def test_what_is_damaged_or_does_not_load_is_built_again(
        self, folder: Path, builds: list[Path], content: bytes
    ) -> None:
        put(folder / name(), b"not a library").write_bytes(content)
        assert load() == folder / name()
        assert len(builds) == 1

    def test_the_library_of_another_is_not_loaded_but_replaced(self, folder: Path, builds: list[Path]) -> None:
        put(folder / name(), b"of another").chmod(0o666)
        assert load().read_bytes() == CONTENT
        assert is_intact(folder / name())

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda folder: (folder / f"{name()}.lock").mkdir(),
            lambda folder: (folder / f"{name()}.lock").symlink_to("/nowhere/at/all"),
            lambda folder: (folder / f"{name()}.lock").symlink_to(folder / "other"),
            lambda folder: (folder / f"{name()}.lock").touch(mode=0o000),
            lambda folder: os.mkfifo(folder / f"{name()}.lock"),
        ],
        ids=["folder", "broken-link", "link", "closed", "pipe"],
    )
    def test_a_lock_that_cannot_be_had(self, folder: Path, builds: list[Path], spoil: Callable[[Path], object]) -> None:
        spoil(folder)
        assert load() == folder / name()
        assert len(builds) == 1
        assert not (folder / "other").exists()

    @pytest.mark.parametrize("at", ["library", "digest"])
    def test_a_folder_where_a_file_should_be(self, folder: Path, builds: list[Path], at: str) -> None:
        path = folder / name()
        (path if at == "library" else path.with_suffix(".sha256")).mkdir()
        assert load(warned="is not a regular file").parent == builds[1]

    def test_a_full_disk(self, folder: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*args: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(shutil, "copyfile", full)
        assert load(warned="the disk is full").parent == builds[1]
        assert not list(folder.glob("*.so"))

    def test_no_place_at_all(self, folder: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
        def nowhere(**options: object) -> None:
            raise FileNotFoundError(2, "No usable temporary directory found")

        folder.chmod(0o777)
        monkeypatch.setattr(just_in_time.tempfile, "TemporaryDirectory", nowhere)
        with pytest.warns(RuntimeWarning, match="alone"), pytest.raises(KernelError, match="no place to build"):
            just_in_time.cached_or_built(RECIPE)

    def test_a_compiler_that_fails_is_not_asked_twice(
        self, folder: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: object) -> Path:
            builds.append(folder)
            raise CompilerError("failed")

        monkeypatch.setattr(just_in_time, "build", fail)
        with pytest.raises(KernelError, match="failed"):
            load()
        assert len(builds) == 1


class TestProcesses:
    def test_one_waits_for_the_other(self, folder: Path) -> None:
        """The lock is held by a process, and gone with it, however it ends."""
        program = f"""
import sys, time
from pathlib import Path
from qdiff_fx.kernels.cache import Cache
with Cache(Path({str(folder)!r})).lock("a"):
    print("held", flush=True)
    time.sleep(600)
"""
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(cache, "_LOCK_SECONDS", 0.2)
                before = time.monotonic()
                with Cache(folder).lock("a"):  # not for ever
                    assert time.monotonic() - before >= 0.2
            other.kill()
            other.wait()
        with Cache(folder).lock("a"):
            assert cache._locked(folder / "b.lock") is not None

    def test_what_a_killed_build_has_left_is_removed(self, folder: Path) -> None:
        old, new, draft = folder / "build-old", folder / "build-new", folder / ".a.so.0123abcd.new"
        for each in (old, new):
            each.mkdir()
        draft.touch()
        for each in (old, draft):
            os.utime(each, (1e9, 1e9))
        with Cache(folder).lock("a"):
            pass
        assert sorted(each.name for each in folder.iterdir()) == ["a.lock", "build-new"]


@pytest.mark.skipif(not status().available, reason=status().reason or "-")
def test_the_library_that_runs_here_is_intact() -> None:
    library = status().library
    assert library is not None
    assert is_intact(library) or not library.exists()
