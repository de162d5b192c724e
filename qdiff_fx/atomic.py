"""The one writer of files and folders: what it writes appears whole under its name, or not at all.

Everything is written beside its destination first. Whoever is killed at any moment, by a signal or by the power, leaves
under the name what was there before or what is new.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import hashlib
import os
import re
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from safetensors import SafetensorError

from qdiff_fx.errors import ArtifactError, QDiffError

LONGEST_LABEL = 200
"""Bytes of a name that staging names repeat; file systems allow 255 for a whole name."""
NEW, OLD = "new", "old"
_DRAFT = re.compile(rf"\..*\.[0-9a-f]{{8}}\.{NEW}", re.DOTALL)  # see `_beside`
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)
_ATTEMPTS = 8
_ABANDONED_AFTER = 24 * 60 * 60
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


@contextmanager
def replacing_file(
    path: str | os.PathLike[str], *, expected_bytes: int = 0, error: type[QDiffError] = ArtifactError
) -> Iterator[Path]:
    """A draft beside `path` that takes its place when the block ends, and vanishes when the block fails.

    Folders above it are made. A symbolic link stays one: what it points to is replaced.

    Args:
        path: the file.
        expected_bytes: what will be written; checked against the free space.
        error: what to raise.

    Raises:
        ArtifactError (or `error`): it cannot be written, or the disk is full; the previous file is untouched.
    """
    target = Path(os.path.realpath(path))
    draft = _beside(target, NEW)
    with _reporting(path, error):
        try:
            _remove_abandoned(target)
            _make_room(target, expected_bytes)
            if target.exists() and not target.is_file():
                raise IsADirectoryError(errno.EISDIR, "it is not a regular file")
            draft.touch(exist_ok=False)
            usual = draft.stat().st_mode
            yield draft
            _finish_file(draft, usual)
            os.replace(draft, target)
            _sync(target.parent)
        finally:
            with suppress(OSError):
                draft.unlink()


@contextmanager
def replacing_folder(path: str | os.PathLike[str], *, expected_bytes: int = 0) -> Iterator[Path]:
    """An empty folder beside `path` that takes its place, with all in it, when the block ends.

    As `replacing_file` in everything else. What the old folder held is gone afterwards: whoever calls decides whether
    that may be.
    """
    target = Path(os.path.realpath(path))
    staging = _beside(target, NEW)
    with _reporting(path, ArtifactError), ExitStack() as held:
        try:
            _remove_abandoned(target)
            _make_room(target, expected_bytes)
            held.enter_context(_claimed(staging))
            yield staging
            _finish_folder(staging)
            _place(staging, target)
            _sync(target.parent)
            for left in _siblings(target, OLD):  # of a writer that was killed
                shutil.rmtree(left, ignore_errors=True)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def current(path: str | os.PathLike[str]) -> Path:
    """Where the folder `path` is to be read.

    It is `path` itself, unless a writer was killed between the two renames that some file systems need: then the
    previous folder is still whole, beside it.
    """
    given = Path(path)
    if given.exists():
        return given
    left = _siblings(Path(os.path.realpath(given)), OLD)
    return max(left, key=lambda each: each.stat().st_mtime) if left else given


def entries(folder: Path) -> list[Path]:
    """What is in a folder, without what writers that were killed left half-written."""
    return [each for each in folder.iterdir() if not _DRAFT.fullmatch(each.name)]


def check_writable(path: str | os.PathLike[str], *, error: type[QDiffError] = ArtifactError) -> None:
    """Find out by writing beside it, before hours of work, whether a file or folder can be made under that name.

    Raises:
        ArtifactError (or `error`): it cannot.
    """
    target = Path(os.path.realpath(path))
    with _reporting(path, error):
        above = next(each for each in target.parents if os.path.lexists(each))
        if not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{above} is not a folder")
        with TemporaryFile(dir=above):
            pass


def write_text(path: Path, text: str) -> Path:
    """Write `text` in UTF-8 through `replacing_file`."""
    with replacing_file(path) as draft:
        draft.write_text(text, encoding="utf-8")
    return path


@contextmanager
def _claimed(staging: Path) -> Iterator[None]:
    """Make that folder; while this process lives, other writers can tell that it is being written."""
    for _ in range(_ATTEMPTS):  # another writer may take it for abandoned before it is claimed
        staging.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            descriptor = os.open(staging, os.O_RDONLY)
            try:
                if _lock(descriptor) is not False and os.path.samestat(os.stat(staging), os.fstat(descriptor)):
                    yield
                    return
            finally:
                os.close(descriptor)
    raise OSError(errno.EBUSY, "other processes keep removing its draft")


def _remove_abandoned(target: Path) -> None:
    """What writers of `target` that were killed left half-written: folders nobody holds, and files a day old."""
    for left in _siblings(target, NEW):
        with suppress(OSError):
            if not left.is_dir():
                if left.stat().st_mtime < time.time() - _ABANDONED_AFTER:
                    left.unlink()
                continue
            descriptor = os.open(left, os.O_RDONLY)
            try:
                if _lock(descriptor):
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Hold an open folder until its descriptor is closed, or its process ends; None where the system cannot."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # of file systems without locks
        return None
    return True


def _place(staging: Path, target: Path) -> None:
    """Put the staging folder under the target's name; what was there ends under the staging name, or is removed."""
    for _ in range(_ATTEMPTS):  # another writer may come between a look and a move
        try:
            os.rename(staging, target)  # an empty folder gives way
            return
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
        try:
            if not _exchange(staging, target):
                _replace_in_two_steps(staging, target)
            return
        except OSError as error:
            if error.errno not in (errno.ENOENT, *_TAKEN):
                raise
    raise OSError(errno.EBUSY, "other processes keep writing it")


def _replace_in_two_steps(staging: Path, target: Path) -> None:
    """For file systems that cannot exchange two names; `current` finds the old folder in between."""
    previous = _beside(target, OLD)
    os.rename(target, previous)
    try:
        os.rename(staging, target)
    except BaseException:
        with suppress(OSError):
            os.rename(previous, target)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names in one step; False where the system or the file system cannot."""
    rename = _renameat2()
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code), os.fspath(b))


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    if sys.platform != "linux":
        return None
    function: Callable[..., int] | None = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return function


def _make_room(target: Path, expected_bytes: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < expected_bytes:
        raise OSError(errno.ENOSPC, f"{expected_bytes} bytes are needed and {free} are free")


def _finish_file(file: Path, usual: int) -> None:
    """Its permissions as the umask wants them, whatever a library gave it, and its content on the disk."""
    mode = stat.S_IMODE(file.stat().st_mode)
    if missing := stat.S_IMODE(usual) & 0o666 & ~mode:
        file.chmod(mode | missing)
    _sync(file)


def _finish_folder(folder: Path) -> None:
    usual = folder.stat().st_mode
    for parent, _, files in os.walk(folder):
        for name in files:
            _finish_file(Path(parent) / name, usual)
        _sync(Path(parent))


def _sync(path: Path) -> None:
    """Down to the disk, where that is possible."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of file systems that keep nothing back
            raise
    finally:
        os.close(descriptor)


def _label(target: Path) -> str:
    """What the staging names of a target begin with, short enough for any name and no other's."""
    name = os.fsencode(target.name)
    if len(name) <= LONGEST_LABEL:
        return f".{target.name}"
    start = name[:LONGEST_LABEL].decode(errors="ignore")
    return f".{start}~{hashlib.sha256(name).hexdigest()[:16]}"


def _beside(target: Path, kind: str) -> Path:
    return target.with_name(f"{_label(target)}.{uuid.uuid4().hex[:8]}.{kind}")


def _siblings(target: Path, kind: str) -> list[Path]:
    """The staging folders of that kind that writers of `target` made."""
    start, end = f"{_label(target)}.", f".{kind}"
    if not target.parent.is_dir():
        return []
    found = [each for each in target.parent.iterdir() if each.name.startswith(start) and each.name.endswith(end)]
    return [each for each in found if len(each.name) == len(start) + 8 + len(end)]


@contextmanager
def _reporting(path: str | os.PathLike[str], error: type[QDiffError]) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as cause:
        # safetensors wraps the operating system's error in its own text.
        text, where = getattr(cause, "strerror", None) or str(cause), os.fspath(path)
        if getattr(cause, "errno", None) == errno.ENOSPC or "No space left" in str(cause):
            fix = "Free space or choose another disk"
            raise error(f"the disk is full ({text})", where=where, fix=fix) from cause
        raise error(f"it cannot be written ({text})", where=where) from cause
