"""Build and load the C++ kernels on first use, once per user and machine; or say why not."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock

from qdiff_fx.atomic import replacing_file
from qdiff_fx.errors import KernelError
from qdiff_fx.kernels.isa import Isa, choose_isa

_log = logging.getLogger(__name__)
_FOLDER = Path(__file__).parent / "csrc"
_SWITCH = "QDIFF_KERNELS"  # "0" or "reference": plain torch only; an instruction set: that one
_FLAGS = "QDIFF_KERNELS_FLAGS"  # more of the compiler's options, for building and for linking
_CACHE = "QDIFF_KERNELS_CACHE"  # folder of the built libraries
_COMPILERS = ("g++", "clang++", "c++")
_COMPILE_FLAGS = ("-std=c++20", "-O3", "-fPIC", "-fopenmp", "-ffp-contract=off", "-Wno-psabi")
_COMPILE_SECONDS = 600


_SOURCES = ("attention.cpp", "plan.cpp", "ops.cpp", "pool.cpp", "pack.cpp")  # of every instruction set


@dataclass(frozen=True)
class Status:
    """Whether the C++ kernels run in this process, and if not, why."""

    available: bool
    reason: str = ""
    kernel: str = ""
    library: Path | None = None
    disabled: bool = False  # by the user, not by a lack of something

    def __post_init__(self) -> None:
        if self.available == bool(self.reason):
            raise ValueError("a reason is given exactly when the kernels are not available")


_lock = threading.Lock()


def status() -> Status:
    """Build (first use on this machine: some seconds) and load the kernels; later calls repeat the answer."""
    with _lock:
        return _load_once()


@functools.cache
def _load_once() -> Status:
    choice = os.environ.get(_SWITCH, "").lower()
    if choice in ("0", "reference"):
        return Status(False, f"{_SWITCH}={choice} asks for the plain-torch reference", disabled=True)
    try:
        library = _built_library(choose_isa("" if choice == "1" else choice))
    except KernelError as error:
        return Status(False, str(error))
    return Status(True, kernel=torch.ops.qdiff_native.kernel_name(), library=library)


def _built_library(isa: Isa) -> Path:
    """Path of the loaded library; rebuilt when the cached file is damaged or does not load."""
    compiler = _find_compiler()
    path = _cache_folder() / f"qdiff_kernels-{isa.name}-{_key(compiler, isa)}.so"
    for last_try in (False, True):
        with FileLock(f"{path}.lock"):
            if not _is_intact(path):
                _build(compiler, isa, path)
        try:
            torch.ops.load_library(str(path))
            return path
        except OSError as error:
            path.unlink(missing_ok=True)
            if last_try:
                raise KernelError(f"the built library does not load: {error}", where=str(path)) from error
    raise AssertionError("unreachable")


def _find_compiler() -> str:
    for name in (os.environ.get("CXX", ""), *_COMPILERS):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise KernelError("no C++ compiler", fix=f"Install one of {', '.join(_COMPILERS)}, or set CXX")


def _cache_folder() -> Path:
    chosen = os.environ.get(_CACHE)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(chosen) if chosen else Path(base) / "qdiff_fx" / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KernelError(f"cannot be created: {error}", where=str(folder), fix=f"Set {_CACHE}") from error
    if not os.access(folder, os.W_OK):
        raise KernelError("cannot be written", where=str(folder), fix=f"Set {_CACHE}")
    return folder


def _key(compiler: str, isa: Isa) -> str:
    """Digest of everything the binary depends on."""
    digest = hashlib.sha256()
    for path in sorted((*_FOLDER.glob("*.h"), *_FOLDER.glob("*.cpp"))):
        digest.update(path.name.encode() + path.read_bytes())
    version = _run([compiler, "--version"]).splitlines()[:1]
    parts = (torch.__version__, platform.machine(), version, _COMPILE_FLAGS, isa, _more_flags())
    digest.update(repr(parts).encode())
    return digest.hexdigest()[:16]


def _more_flags() -> list[str]:
    return os.environ.get(_FLAGS, "").split()


def _is_intact(library: Path) -> bool:
    # dlopen of a truncated file can kill the process, so compare digests first.
    try:
        return _digest_file(library).read_text() == hashlib.sha256(library.read_bytes()).hexdigest()
    except OSError:
        return False


def _digest_file(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _build(compiler: str, isa: Isa, library: Path) -> None:
    from torch.utils.cpp_extension import library_paths  # brings all of setuptools

    _log.info("building the integer kernels for %s into %s", isa.name, library)
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="build-") as name:
        folder = Path(name)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda each: _compile(compiler, each[0], each[1], folder), _sources(isa)))
        search = [f"-L{path}" for path in library_paths()]
        # No -fopenmp here: torch's own OpenMP runtime, already loaded, is the only one wanted.
        link = [compiler, "-shared", *_more_flags(), *map(str, objects), *search, "-ltorch_cpu", "-lc10"]
        with replacing_file(library, error=KernelError) as made:
            _run([*link, "-o", str(made)])
            with replacing_file(_digest_file(library), error=KernelError) as digest:
                digest.write_text(hashlib.sha256(made.read_bytes()).hexdigest())


def _sources(isa: Isa) -> Iterator[tuple[str, list[str]]]:
    """What is compiled, with the flags of each: what takes longest first, so that no core waits for it at the end."""
    from torch.utils.cpp_extension import include_paths

    for source in isa.sources:
        yield source, list(isa.machine_flags)
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    for source in _SOURCES:
        yield source, [abi, *(f"-isystem{path}" for path in include_paths())]


def _compile(compiler: str, source: str, flags: list[str], folder: Path) -> Path:
    made = folder / f"{source}.o"
    _run([compiler, *_COMPILE_FLAGS, *flags, *_more_flags(), "-c", str(_FOLDER / source), "-o", str(made)])
    return made


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelError(f"could not run: {error}", where=command[0]) from error
    if done.returncode != 0:
        last = " | ".join(done.stderr.strip().splitlines()[-5:])
        raise KernelError(f"failed with exit code {done.returncode}: {last}", where=command[0])
    return done.stdout
