"""Files and folders appear whole or not at all, whatever happens to whoever writes them."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from qdiff_fx import atomic
from qdiff_fx.atomic import current, entries, replacing_file, replacing_folder, write_text
from qdiff_fx.errors import ArtifactError, KernelError

ONE_STEP, TWO_STEPS = "one step", "two steps"


@pytest.fixture(params=[ONE_STEP, TWO_STEPS])
def renames(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How two folders change places: where the file system can exchange them, and where it cannot."""
    if request.param == TWO_STEPS:
        monkeypatch.setattr(atomic, "_renameat2", lambda: None)
    return request.param


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    old = os.umask(request.param)
    yield request.param
    os.umask(old)


def fill(path: Path, text: str) -> None:
    with replacing_folder(path) as folder:
        (folder / "a.txt").write_text(text)
        (folder / "b.txt").write_text(text)


def texts(path: Path) -> list[str]:
    return [file.read_text() for file in sorted(path.iterdir())]


def forked(work: Callable[[], object]) -> int:
    """The process that does it, which ends by itself if nobody kills it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forking beside threads: the child touches nothing of theirs
        child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


class TestFile:
    def test_is_replaced_once_it_is_complete(self, tmp_path: Path) -> None:
        path = tmp_path / "a.txt"
        path.write_text("old")
        with replacing_file(path) as draft:
            draft.write_text("new")
            assert path.read_text() == "old"
        assert path.read_text() == "new"
        assert list(tmp_path.iterdir()) == [path]

    def test_a_failure_leaves_the_old_one_and_no_draft(self, tmp_path: Path) -> None:
        path = write_text(tmp_path / "a.txt", "old")

        def fail() -> None:
            with replacing_file(path) as draft:
                draft.write_text("half")
                raise RuntimeError("interrupted")

        with pytest.raises(RuntimeError, match="interrupted"):
            fail()
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]

    def test_folders_above_are_made(self, tmp_path: Path) -> None:
        assert write_text(tmp_path / "a" / "b" / "c.txt", "ε").read_text(encoding="utf-8") == "ε"

    def test_a_folder_is_no_file(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        with pytest.raises(ArtifactError, match="cannot be written"):
            write_text(tmp_path / "folder", "text")
        assert [p.name for p in tmp_path.iterdir()] == ["folder"]

    def test_a_device_stays_one(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ArtifactError, match="not a regular file"):
            write_text(tmp_path / "pipe", "text")
        assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)

    def test_a_link_stays_one_and_its_file_is_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "file")
        for text in ("first", "second"):
            write_text(tmp_path / "link", text)
            assert (tmp_path / "elsewhere" / "file").read_text() == text
        assert (tmp_path / "link").is_symlink()

    def test_the_error_is_the_callers(self, tmp_path: Path) -> None:
        with pytest.raises(KernelError, match="cannot be written"), replacing_file(tmp_path, error=KernelError):
            pytest.fail("there is nothing to write to")

    def test_a_draft_of_long_ago_is_removed(self, tmp_path: Path) -> None:
        old, new = (tmp_path / f".a.txt.0123456{digit}.new" for digit in (7, 8))
        for left in (old, new):
            left.touch()
        os.utime(old, (0, 0))
        write_text(tmp_path / "a.txt", "text")
        assert sorted(path.name for path in tmp_path.iterdir()) == [new.name, "a.txt"]


class TestFolder:
    def test_is_replaced_once_it_is_complete(self, tmp_path: Path, renames: str) -> None:
        path = tmp_path / "saved"
        fill(path, "old")
        with replacing_folder(path) as folder:
            (folder / "c.txt").write_text("new")
            assert texts(path) == ["old", "old"]
        assert texts(path) == ["new"]
        assert list(tmp_path.iterdir()) == [path]

    def test_an_empty_one_may_be_replaced(self, tmp_path: Path, renames: str) -> None:
        (tmp_path / "saved").mkdir()
        fill(tmp_path / "saved", "new")
        assert texts(tmp_path / "saved") == ["new", "new"]

    def test_a_link_stays_one_and_its_folder_is_replaced(self, tmp_path: Path, renames: str) -> None:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "saved")
        for text in ("first", "second"):
            fill(tmp_path / "link", text)
            assert texts(tmp_path / "elsewhere" / "saved") == [text, text]
        assert (tmp_path / "link").is_symlink()
        assert len(list((tmp_path / "elsewhere").iterdir())) == 1

    @pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O error"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
    def test_the_last_move_fails(
        self, tmp_path: Path, renames: str, monkeypatch: pytest.MonkeyPatch, error: BaseException
    ) -> None:
        path = tmp_path / "saved"
        fill(path, "old")
        rename = os.rename

        def fail(source: Path, destination: Path) -> None:
            if source.suffix == ".new" and not destination.exists():
                raise error
            rename(source, destination)

        def refuse(*_: object) -> bool:
            raise error

        monkeypatch.setattr(os, "rename", fail)
        if renames == ONE_STEP:
            monkeypatch.setattr(atomic, "_exchange", refuse)
        with pytest.raises((ArtifactError, KeyboardInterrupt)):
            fill(path, "new")
        assert texts(path) == ["old", "old"]
        assert list(tmp_path.iterdir()) == [path]

    def test_between_two_moves_the_old_one_is_found(self, tmp_path: Path) -> None:
        """As a writer leaves it that was killed there, on a file system that cannot exchange."""
        path, left = tmp_path / "saved", tmp_path / ".saved.01234567.old"
        fill(path, "old")
        path.rename(left)
        assert texts(current(path)) == ["old", "old"]
        fill(path, "new")
        assert current(path) == path
        assert texts(path) == ["new", "new"]
        assert not left.exists()

    def test_what_a_killed_writer_left_is_removed_by_the_next(self, tmp_path: Path) -> None:
        path, started = tmp_path / "saved", tmp_path / "started"

        def hang() -> None:
            with replacing_folder(path) as folder:
                (folder / "half").write_text("half")
                started.touch()
                time.sleep(60)

        writer = forked(hang)
        while not started.exists():
            time.sleep(0.01)
        fill(path, "beside it")
        assert len(list(tmp_path.iterdir())) == 3  # what is being written is left alone
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        fill(path, "after it")
        assert sorted(tmp_path.iterdir()) == [path, started]
        assert texts(path) == ["after it", "after it"]

    def test_a_draft_that_is_taken_away_before_it_is_claimed_is_made_again(self, tmp_path, monkeypatch) -> None:
        lock, taken = atomic._lock, []

        def take(descriptor: int) -> bool | None:
            (staging,) = tmp_path.iterdir()
            if not taken:
                taken.append(staging)
                staging.rmdir()
            return lock(descriptor)

        monkeypatch.setattr(atomic, "_lock", take)
        fill(tmp_path / "saved", "text")
        assert taken
        assert texts(tmp_path / "saved") == ["text", "text"]

    def test_drafts_are_no_content_but_an_old_folder_is(self, tmp_path: Path) -> None:
        (tmp_path / ".a.01234567.new").mkdir()
        assert entries(tmp_path) == []
        (tmp_path / ".a.01234567.old").mkdir()
        assert [each.name for each in entries(tmp_path)] == [".a.01234567.old"]

    def test_two_processes_write_it(self, tmp_path: Path, renames: str) -> None:
        path = tmp_path / "saved"
        writers = [forked(lambda text=text: [fill(path, text) for _ in range(20)]) for text in ("ours", "theirs")]
        for writer in writers:
            assert os.waitpid(writer, 0)[1] == 0
        assert len(set(texts(path))) == 1
        assert list(tmp_path.iterdir()) == [path]

    def test_another_writer_may_come_between_the_two_steps(self, tmp_path: Path, renames: str, monkeypatch) -> None:
        path, rename, others = tmp_path / "saved", os.rename, ["theirs"]
        fill(path, "old")

        def interrupted(source: Any, target: Any) -> None:
            rename(source, target)
            if os.fspath(source) == os.fspath(path) and others:
                fill(path, others.pop())

        monkeypatch.setattr(os, "rename", interrupted)
        fill(path, "ours")
        assert set(texts(path)) == {"ours"}
        assert list(tmp_path.iterdir()) == [path]
        assert (not others) == (renames == "two steps")

    def test_what_another_name_left_is_not_taken(self, tmp_path: Path) -> None:
        fill(tmp_path / ".saved.more.01234567.old", "another's")
        assert current(tmp_path / "saved") == tmp_path / "saved"

    @pytest.mark.skipif(sys.platform != "linux", reason="elsewhere folders change places in two steps")
    def test_a_reader_never_misses_it(self, tmp_path: Path) -> None:
        """Killed at any moment, a writer leaves one whole folder under the name."""
        path = tmp_path / "saved"
        fill(path, "0")
        writer = forked(lambda: [fill(path, str(number)) for number in range(1000)])
        last, changes, until = 0, 0, time.monotonic() + 30
        while changes < 20 and time.monotonic() < until:
            now = path.stat().st_ino
            last, changes = now, changes + (now != last)
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        assert changes == 20
        assert len(texts(path)) == 2
        assert len(set(texts(path))) == 1


@pytest.mark.parametrize("length", [1, 199, 200, 201, 255])
@pytest.mark.parametrize("letter", ["a", "ε"])
def test_names_may_be_as_long_as_the_file_system_allows(tmp_path: Path, length: int, letter: str) -> None:
    name = letter * (length // len(letter.encode())) or letter
    fill(tmp_path / name, "text")
    fill(tmp_path / name, "again")
    write_text(tmp_path / f"{name[:-1]}b", "text")
    assert texts(tmp_path / name) == ["again", "again"]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077], indirect=True)
def test_permissions_are_those_of_the_umask(tmp_path: Path, umask: int) -> None:
    with replacing_file(tmp_path / "file") as draft:
        save_file({"a": torch.zeros(1)}, draft)
        draft.chmod(0o600)
    with replacing_folder(tmp_path / "folder") as folder:
        save_file({"a": torch.zeros(1)}, folder / "file")
        (folder / "file").chmod(0o600)
    for path in (tmp_path / "file", tmp_path / "folder" / "file"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~umask


@pytest.mark.parametrize("writer", [replacing_file, replacing_folder])
class TestNoRoom:
    def test_is_seen_before_writing(self, tmp_path: Path, writer, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = type(shutil.disk_usage("/"))(10**9, 10**9 - 5, 5)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        full = pytest.raises(ArtifactError, match=r"the disk is full \(6 bytes are needed and 5 are free\)")
        with full, writer(tmp_path / "a", expected_bytes=6):
            pytest.fail("it wrote")

    @pytest.mark.parametrize(
        "error",
        [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device (28)")],
        ids=["os", "safetensors"],
    )
    def test_is_said_and_nothing_stays(self, tmp_path: Path, writer, error: Exception) -> None:
        full = pytest.raises(ArtifactError, match=r"a: the disk is full.*Free space or choose another disk")
        with full, writer(tmp_path / "a") as staging:
            (staging / "half" if staging.is_dir() else staging).write_text("half")
            raise error
        assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits")
class TestRefusals:
    """Of the system's own, in processes that have it."""

    def outcome(self, path: Path, before: Callable[[], object]) -> str:
        """What saving tensors there says in a process that first does something to itself or to the path."""
        reads, writes = os.pipe()

        def save() -> None:
            before()
            try:
                with replacing_folder(path) as folder:
                    save_file({"a": torch.zeros(100_000)}, folder / "a")
                said = "saved"
            except ArtifactError as error:
                said = str(error)
            os.write(writes, said.encode())

        child = forked(save)
        os.waitpid(child, 0)
        os.close(writes)
        with os.fdopen(reads) as pipe:
            return pipe.read()

    def test_a_file_too_large(self, tmp_path: Path) -> None:
        import resource

        fill(tmp_path / "saved", "old")
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # noqa: E731
        assert "cannot be written (" in self.outcome(tmp_path / "saved", limit)
        assert texts(tmp_path / "saved") == ["old", "old"]
        assert list(tmp_path.iterdir()) == [tmp_path / "saved"]

    def test_a_folder_that_may_not_be_written_in(self, tmp_path: Path) -> None:
        fill(tmp_path / "above" / "saved", "old")
        (tmp_path / "above").chmod(0o555)
        nobody = lambda: os.setuid(65534) if os.geteuid() == 0 else None  # noqa: E731
        tmp_path.chmod(0o755)
        said = self.outcome(tmp_path / "above" / "saved", nobody)
        (tmp_path / "above").chmod(0o755)
        assert "cannot be written (Permission denied)" in said
        assert texts(tmp_path / "above" / "saved") == ["old", "old"]
