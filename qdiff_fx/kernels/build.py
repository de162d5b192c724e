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
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from qdiff_fx.errors import KernelError
from qdiff_fx.kernels.cache import BUILD_PREFIX, Cache, is_intact, open_cache
from qdiff_fx.kernels.isa import Isa, choose_isa

_log = logging.getLogger(__name__)
_FOLDER = Path(__file__).parent / "csrc"
_SWITCH = "QDIFF_KERNELS"  # "0" or "reference": plain torch only; an instruction set: that one
_FLAGS = "QDIFF_KERNELS_FLAGS"  # more of the compiler's options, for building and for linking
_COMPILERS = ("g++", "clang++", "c++")
_COMPILE_FLAGS = ("-std=c++20", "-O3", "-fPIC", "-fopenmp", "-ffp-contract=off", "-Wno-psabi")
_COMPILE_SECONDS = 600


_SOURCES = (
    "ops/attention.cpp",
    "ops/plan.cpp",
    "ops/ops.cpp",
    "ops/pool.cpp",
    "core/pack.cpp",
)  # of every instruction set


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
    """Path of the loaded library: the cached one, or a new one, which is kept where that can be."""
    if os.name != "posix":
        raise KernelError("the kernels are built where users and their files are those of POSIX only")
    compiler, name = _find_compiler(), f"qdiff_kernels-{isa.name}-{_key(isa)}"
    name = f"{name}-{_version(compiler)}.so" if compiler else f"{name}-*.so"
    try:
        cache = open_cache()
    except KernelError as error:
        return _build_for_this_process(compiler, isa, str(error))
    for found in cache.libraries(name):
        if not _why_not_loaded(found):
            return found
        cache.forget(found)
    if not compiler:
        raise _no_compiler()
    if not cache.writable:
        return _build_for_this_process(compiler, isa, f"{cache.folder} cannot be written and has no library that fits")
    return _build_into(cache, compiler, isa, name)


def _build_into(cache: Cache, compiler: str, isa: Isa, name: str) -> Path:
    with cache.lock(name):
        path = cache.folder / name
        if not is_intact(path):  # nobody was faster
            try:
                with tempfile.TemporaryDirectory(dir=cache.folder, prefix=BUILD_PREFIX) as folder:
                    path = cache.keep(_build(compiler, isa, Path(folder)), name)
            except _CompilerError:
                raise
            except (KernelError, OSError) as error:
                return _build_for_this_process(compiler, isa, str(error))
    if reason := _why_not_loaded(path):
        cache.forget(path)
        raise KernelError(f"the built library does not load: {reason}", where=str(path))
    return path


def _build_for_this_process(compiler: str, isa: Isa, reason: str) -> Path:
    """A library in a temporary folder of ours, which is gone once it is loaded."""
    if not compiler:
        raise _no_compiler()
    warnings.warn(
        f"the int8 kernels are compiled for this process alone, which takes some seconds each time: {reason}",
        RuntimeWarning,
        stacklevel=2,
    )
    try:
        with tempfile.TemporaryDirectory(prefix="qdiff-kernels-") as folder:
            path = _build(compiler, isa, Path(folder))
            if why := _why_not_loaded(path):
                raise KernelError(f"the built library does not load: {why}", where=str(path))
            return path
    except OSError as error:
        raise KernelError(f"there is no place to build the kernels: {error}", where="the temporary folder") from error


def _why_not_loaded(library: Path) -> str:
    """Load it; what went wrong, if something did."""
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return str(error)
    return ""


def _find_compiler() -> str:
    """The compiler's path; empty where there is none."""
    for name in (os.environ.get("CXX", ""), *_COMPILERS):
        found = shutil.which(name) if name else None
        if found:
            return found
    return ""


def _no_compiler() -> KernelError:
    return KernelError("no C++ compiler", fix=f"Install one of {', '.join(_COMPILERS)}, or set CXX")


def _key(isa: Isa) -> str:
    """Digest of everything the binary depends on but the compiler, which need not be there when it is loaded."""
    digest = hashlib.sha256()
    for path in sorted((*_FOLDER.rglob("*.h"), *_FOLDER.rglob("*.cpp"))):
        digest.update(str(path.relative_to(_FOLDER)).encode() + path.read_bytes())
    parts = (torch.__version__, platform.machine(), _COMPILE_FLAGS, isa, _more_flags())
    digest.update(repr(parts).encode())
    return digest.hexdigest()[:16]


def _version(compiler: str) -> str:
    return hashlib.sha256(repr(_run([compiler, "--version"]).splitlines()[:1]).encode()).hexdigest()[:8]


def _more_flags() -> list[str]:
    return os.environ.get(_FLAGS, "").split()


def _build(compiler: str, isa: Isa, folder: Path) -> Path:
    """The library, made in a folder that is used for nothing else."""
    from torch.utils.cpp_extension import library_paths  # brings all of setuptools

    _log.info("building the integer kernels for %s in %s", isa.name, folder)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda each: _compile(compiler, each[0], each[1], folder), _sources(isa)))
    search = [f"-L{path}" for path in library_paths()]
    made = folder / "qdiff_kernels.so"
    # No -fopenmp here: torch's own OpenMP runtime, already loaded, is the only one wanted.
    link = [compiler, "-shared", *_more_flags(), *map(str, objects), *search, "-ltorch_cpu", "-lc10"]
    _run([*link, "-o", str(made)])
    return made


def _sources(isa: Isa) -> Iterator[tuple[str, list[str]]]:
    """What is compiled, with the flags of each: what takes longest first, so that no core waits for it at the end."""
    from torch.utils.cpp_extension import include_paths

    for source in isa.sources:
        yield source, list(isa.machine_flags)
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    for source in _SOURCES:
        yield source, [abi, *(f"-isystem{path}" for path in include_paths())]


def _compile(compiler: str, source: str, flags: list[str], folder: Path) -> Path:
    made = folder / f"{Path(source).stem}.o"
    _run(
        [
            compiler,
            *_COMPILE_FLAGS,
            f"-I{_FOLDER}",
            *flags,
            *_more_flags(),
            "-c",
            str(_FOLDER / source),
            "-o",
            str(made),
        ]
    )
    return made


class _CompilerError(KernelError):
    """The compiler does not like the sources: it would not elsewhere."""


def _run(command: list[str]) -> str:
    # What is put before this process, as sanitizers are, is not meant for the compiler, which it slows down tenfold.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_COMPILE_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _CompilerError(f"could not run: {error}", where=command[0]) from error
    if done.returncode != 0:
        last = " | ".join(done.stderr.strip().splitlines()[-5:])
        kind = KernelError if "No space left" in done.stderr else _CompilerError
        raise kind(f"failed with exit code {done.returncode}: {last}", where=command[0])
    return done.stdout
