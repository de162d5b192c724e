"""The driver built for one instruction set, of this processor or of another one, and run on it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import qdiff_fx.kernels
from qdiff_fx.kernels.isa import ISAS

_SOURCES = Path(qdiff_fx.kernels.__file__).parent / "csrc"
_HERE = Path(__file__).parent
_FLAGS = ("-std=c++20", "-ffp-contract=off", "-Wno-psabi", "-pthread", "-static")
_SHARED = ("core/convolution.cpp", "core/pack.cpp", "core/pages.cpp", "core/parallel.cpp", "core/pool.cpp")
QUICK, AS_SHIPPED = "-Og", "-O3"


@dataclass(frozen=True)
class Driver:
    """Of one instruction set.

    Attributes:
        isa: which.
        machine: of the processors that run it, as `platform.machine()` names them.
        compiler: for such processors.
        effort: of the compiler: QUICK takes a third of the time.
    """

    isa: str
    machine: str
    compiler: str
    effort: str = QUICK

    def built(self, folder: Path) -> Path:
        """The program; kept in the folder until a source, a flag or the compiler changes."""
        name = f"{self.isa}-{self.machine}{self.effort}"
        program = folder / f"{name}-{self._key()}"
        with open(folder / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not program.exists():
                for old in folder.glob(f"{name}-*"):
                    old.unlink()
                with tempfile.TemporaryDirectory(dir=folder) as temporary:
                    made = Path(temporary) / "driver"
                    _run([*self._command(), "-o", str(made)])
                    os.replace(made, program)
        return program

    def _command(self) -> list[str]:
        isa = next(isa for isa in ISAS if isa.name == self.isa)
        sources = [str(_SOURCES / source) for source in (*_SHARED, *isa.sources)]
        options = [*_FLAGS, self.effort, *isa.flags_for(self.machine), f"-I{_SOURCES}", f"-I{_HERE}"]
        return [self.compiler, *options, str(_HERE / "driver.cpp"), *sources]

    def _key(self) -> str:
        digest = hashlib.sha256(repr([self._command(), _run([self.compiler, "--version"])]).encode())
        for folder in (_SOURCES / "core", _SOURCES / "isa", _HERE):
            for path in sorted([*folder.glob("*.h"), *folder.glob("*.cpp")]):
                digest.update(path.read_bytes())
        return digest.hexdigest()[:16]


def run(program: Path, what: str, cases: Path, results: Path, emulator: Sequence[str] = ()) -> tuple[int, str]:
    """The driver's exit status and what it says; `what` is run or compare."""
    command = [*emulator, str(program), what, str(cases), str(results)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout + done.stderr


def missing(*programs: str) -> str:
    """Which of these programs there are not."""
    return ", ".join(program for program in programs if not shutil.which(program))


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr[-2000:]}"
    return done.stdout
