"""How the C++ libraries are made, whether by the first call that needs them or for a wheel: sources, flags, compiler.

There is one library of operators, which knows torch, by its stable interface alone, and one for each instruction set,
which knows nothing of torch.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from qdiff_fx.errors import KernelError
from qdiff_fx.kernels.isa import ISAS, Isa

_log = logging.getLogger(__name__)
_FOLDER = Path(__file__).parent / "csrc"
_FLAGS = "QDIFF_KERNELS_FLAGS"  # more of the compiler's options, for building and for linking
_COMPILERS = ("g++", "clang++", "c++")
_COMPILE_FLAGS = ("-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wno-psabi")
_COMPILE_SECONDS = 600
_TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # 2.11: the oldest release the operators are loaded into
_TORCH = "libtorch_cpu.so"
# What takes longest first, so that no core waits for it at the end.
_OPERATORS = (
    "ops/plan.cpp",
    "ops/library.cpp",
    "ops/layers.cpp",
    "ops/int_attention.cpp",
    "ops/pointwise.cpp",
    "ops/tensor.cpp",
    "ops/int_linear.cpp",
    "ops/group_norm_act.cpp",
    "ops/dispatched.cpp",
    "ops/checks.cpp",
    "ops/pack_weight.cpp",
    "ops/adaround_step.cpp",
    "ops/nearest_codes.cpp",
    "ops/histogram.cpp",
    "ops/range_errors.cpp",
    "ops/aten.cpp",
    "ops/layer_norm_act.cpp",
    "ops/norms.cpp",
    "ops/int_conv.cpp",
    "ops/int_depthwise_conv.cpp",
    "ops/int_gram.cpp",
    "ops/round_with_feedback.cpp",
    "ops/layout.cpp",
    "ops/act_quantize.cpp",
    "ops/act_quantize_rest.cpp",
    "core/convolution.cpp",
    "core/pool.cpp",
    "core/pages.cpp",
    "core/pack.cpp",
    "core/parallel.cpp",
)


@dataclass(frozen=True)
class Recipe:
    """One library: what it is made of.

    Attributes:
        name: the instruction set, or "operators".
        sources: below ``csrc``.
        flags: of the compiler, besides those of every library.
        uses_torch: whether it calls torch.
    """

    name: str
    sources: tuple[str, ...]
    flags: tuple[str, ...] = ()
    uses_torch: bool = False

    @property
    def file(self) -> str:
        """What it is called in a package."""
        return f"libqdiff_{self.name}.so"


def kernels_of(isa: Isa, machine: str = "") -> Recipe:
    """The library of an instruction set, for this machine or another."""
    flags = isa.flags_for(machine or platform.machine())
    return Recipe(isa.name, (*isa.sources, "core/pack.cpp", "core/library.cpp"), flags)


OPERATORS = Recipe("operators", _OPERATORS, uses_torch=True)


def isas_of(machine: str) -> list[Isa]:
    """The instruction sets that processors of such a machine may have."""
    return [isa for isa in ISAS if not isa.needs or isa.flags_for(machine)]


def find_compiler() -> str:
    """The compiler's path; empty where there is none."""
    for name in (os.environ.get("CXX", ""), *_COMPILERS):
        found = shutil.which(name) if name else None
        if found:
            return found
    return ""


@functools.cache
def sources_version() -> int:
    """A digest of all sources, 64 bits: libraries made of others are not loaded, nor with each other."""
    digest = hashlib.sha256()
    for path in sorted((*_FOLDER.rglob("*.h"), *_FOLDER.rglob("*.cpp"))):
        digest.update(str(path.relative_to(_FOLDER)).encode() + path.read_bytes())
    return int.from_bytes(digest.digest()[:8], "big")


def key(recipe: Recipe) -> str:
    """Digest of everything a library depends on but the compiler, which need not be there when it is loaded."""
    parts = (sources_version(), platform.machine(), _COMPILE_FLAGS, recipe, more_flags(), _TORCH_TARGET)
    of_torch = _torch_version() if recipe.uses_torch else ""
    return hashlib.sha256(repr((*parts, of_torch)).encode()).hexdigest()[:16]


def compiler_version(compiler: str) -> str:
    """A digest of what a compiler calls itself."""
    return hashlib.sha256(repr(_run([compiler, "--version"]).splitlines()[:1]).encode()).hexdigest()[:8]


def more_flags() -> list[str]:
    """Options of the compiler that the user adds."""
    return os.environ.get(_FLAGS, "").split()


def build(compiler: str, recipe: Recipe, folder: Path) -> Path:
    """The library, made in a folder that is used for nothing else."""
    return build_all(compiler, [recipe], folder)[0]


def build_all(compiler: str, recipes: Sequence[Recipe], folder: Path) -> list[Path]:
    """The libraries, made in a folder that is used for nothing else."""
    _log.info("building the integer kernels (%s) in %s", ", ".join(each.name for each in recipes), folder)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [[pool.submit(_compile, compiler, each, source, folder) for source in each.sources] for each in recipes]
        try:
            objects = [[job.result() for job in each] for each in jobs]
        finally:
            pool.shutdown(cancel_futures=True)
    return [_link(compiler, *each, folder) for each in zip(recipes, objects, strict=True)]


def build_package(machine: str, folder: Path) -> list[Path]:
    """All libraries for one machine, in the folder where a package has them.

    Raises:
        KernelError: there is no compiler, or it fails.
    """
    compiler = find_compiler()
    if not compiler:
        raise KernelError("no C++ compiler", fix=f"Install one of {', '.join(_COMPILERS)}, or set CXX")
    folder.mkdir(parents=True, exist_ok=True)
    recipes = [*(kernels_of(isa, machine) for isa in isas_of(machine)), OPERATORS]
    with tempfile.TemporaryDirectory(prefix="qdiff-kernels-") as temporary:
        made = build_all(compiler, recipes, Path(temporary))
        return [Path(shutil.copyfile(each, folder / each.name)) for each in made]


def _compile(compiler: str, recipe: Recipe, source: str, folder: Path) -> Path:
    flags = [*_COMPILE_FLAGS, f"-DQDIFF_VERSION={sources_version()}ull", *recipe.flags]
    flags += [f"-I{_FOLDER}", f"-ffile-prefix-map={_FOLDER}=csrc"]
    if recipe.uses_torch:
        headers = _torch_headers()
        flags += [_TORCH_TARGET, f"-isystem{headers}", f"-ffile-prefix-map={headers}=torch"]
    made = folder / f"{recipe.name}-{source.replace('/', '-')}.o"
    _run([compiler, *flags, *more_flags(), "-c", str(_FOLDER / source), "-o", str(made)])
    return made


def _link(compiler: str, recipe: Recipe, objects: Sequence[Path], folder: Path) -> Path:
    made = folder / recipe.file
    link = [compiler, "-shared", *more_flags(), *map(str, objects)]
    if recipe.uses_torch:
        link += ["-Wl,--no-as-needed", str(_stand_in_for_torch(compiler, folder))]
    _run([*link, "-o", str(made)])
    return made


def _stand_in_for_torch(compiler: str, folder: Path) -> Path:
    """An empty library of that name to link with: whoever loads ours has loaded torch's."""
    empty, made = folder / "empty.cpp", folder / _TORCH
    empty.touch()
    _run([compiler, "-shared", "-fPIC", "-nostdlib", f"-Wl,-soname,{_TORCH}", str(empty), "-o", str(made)])
    return made


def _torch_headers() -> Path:
    # Torch itself need not be imported for that.
    found = importlib.util.find_spec("torch")
    if not found or not found.origin or not (headers := Path(found.origin).parent / "include").is_dir():
        raise KernelError("torch's headers are not there", fix="Install torch from a wheel, which brings them")
    return headers


def _torch_version() -> str:
    import torch

    return torch.__version__


class CompilerError(KernelError):
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
        raise CompilerError(f"could not run: {error}", where=command[0]) from error
    if done.returncode != 0:
        last = " | ".join(done.stderr.strip().splitlines()[-5:])
        kind = KernelError if "No space left" in done.stderr else CompilerError
        raise kind(f"failed with exit code {done.returncode}: {last}", where=command[0])
    return done.stdout
