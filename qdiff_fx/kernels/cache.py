"""Where built libraries are kept, and which of those found there may be loaded.

Loading a library runs it, so it has to be ours. The digest beside it does not say so: whoever can put a library there
can put its digest there. It only says that the library is whole. What counts is who could have written either: the
folder and the file belong to us or to root, nobody else may write them, and what we made ourselves of the path is no
symbolic link that would lead elsewhere. Reading needs no more: a folder baked into an image, which nobody can write,
serves as well.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from qdiff_fx.atomic import replacing_file
from qdiff_fx.errors import KernelError

VARIABLE = "QDIFF_KERNELS_CACHE"  # the folder
BUILD_PREFIX = "build-"  # of folders in which something is being compiled
_OWN = ("qdiff_fx", "kernels")  # what we add to the user's folder of caches
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_LOCK_SECONDS, _POLL_SECONDS = 300.0, 0.1
_STALE_SECONDS = 3600.0  # age of what a killed build has left


@dataclass(frozen=True)
class Cache:
    """A folder of libraries that only we or root can have written."""

    folder: Path

    @property
    def writable(self) -> bool:
        """Whether a library can be kept here."""
        return os.access(self.folder, os.W_OK | os.X_OK)

    def libraries(self, pattern: str) -> Iterator[Path]:
        """The whole and trusted ones whose names match."""
        for path in sorted(self.folder.glob(pattern)):
            if is_intact(path):
                yield path

    def keep(self, built: Path, name: str) -> Path:
        """A library from elsewhere under its name here, with its digest; raises KernelError or OSError."""
        path = self.folder / name
        digest = _digest_file(path)
        with replacing_file(path, error=KernelError) as made:
            shutil.copyfile(built, made)
            with replacing_file(digest, error=KernelError) as draft:
                draft.write_text(hashlib.sha256(made.read_bytes()).hexdigest())
        for each in (path, digest):  # whatever the umask: what others may write is not loaded
            each.chmod(0o644)
        return path

    def forget(self, path: Path) -> None:
        """Remove a library that is of no use."""
        with suppress(OSError):
            path.unlink()

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Wait while another process of ours builds that library; where there can be no lock, or not soon, go on.

        Building twice costs time and nothing else: libraries appear whole.
        """
        descriptor = _locked(self.folder / f"{name}.lock")
        try:
            self._sweep()
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _sweep(self) -> None:
        """Remove what builds that were killed have left."""
        with suppress(OSError):
            for left in self.folder.iterdir():
                ours = left.name.startswith(BUILD_PREFIX) or (left.name.startswith(".") and left.name.endswith(".new"))
                if ours and time.time() - left.lstat().st_mtime > _STALE_SECONDS:
                    shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


def open_cache() -> Cache:
    """The user's cache, made if need be.

    Raises:
        KernelError: there is none, it cannot be made or read, or others could write it.
    """
    fix = f"Set {VARIABLE} to a folder of your own"
    chosen = os.environ.get(VARIABLE)
    try:
        folder = Path(chosen).resolve() if chosen else _folder_of_caches().joinpath(*_OWN)
        _make(folder)
        own = (folder,) if chosen else (folder.parent, folder)
        for each in own:
            if reason := distrust(each):
                raise KernelError(f"{each} {reason}", where=str(folder), fix=fix)
        for each in folder.parents:
            mode = each.lstat().st_mode
            if stat.S_ISDIR(mode) and mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                raise KernelError(f"everybody can rename what is in {each}", where=str(folder), fix=fix)
        os.listdir(folder)
    except (OSError, RuntimeError) as error:  # the latter of a user without a home
        raise KernelError(f"cannot be used: {error}", where=chosen or "the cache of kernels", fix=fix) from error
    return Cache(folder)


def distrust(path: Path) -> str:
    """Why others could have put there what is there; empty if only we or root could."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        return "is a symbolic link"
    return _distrust(found)


def is_intact(library: Path) -> bool:
    """Whether a library is trusted, and whole: loading half of one can kill the process."""
    try:
        content, digest = _read(library), _read(_digest_file(library))
    except OSError:
        return False
    return digest.strip() == hashlib.sha256(content).hexdigest().encode()


def _read(path: Path) -> bytes:
    """The content of a regular file that is trusted."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or _distrust(found):
            raise PermissionError(f"{path} is not trusted")
        return file.read()


def _distrust(found: os.stat_result) -> str:
    if found.st_uid not in (0, os.geteuid()):
        return f"belongs to another user ({found.st_uid})"
    return "can be written by others" if found.st_mode & _OTHERS_WRITE else ""


def _folder_of_caches() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache").resolve()


def _make(folder: Path) -> None:
    """The folder, for us alone; one of ours from before that others can write is closed to them."""
    for each in (*reversed(folder.parents), folder):
        if not each.is_dir():
            each.mkdir(mode=0o700, exist_ok=True)
    if folder.parts[-2:] == _OWN:
        for each in (folder.parent, folder):
            found = each.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and found.st_mode & _OTHERS_WRITE:
                with suppress(OSError):
                    each.chmod(0o700)


def _digest_file(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _locked(path: Path) -> int | None:
    """The descriptor of a lock that is held until it is closed; None where it cannot be had."""
    try:
        import fcntl

        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except (OSError, ImportError):
        return None
    end = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() < end:
                time.sleep(_POLL_SECONDS)
                continue
        except OSError:  # a file system without locks
            pass
        os.close(descriptor)
        return None
