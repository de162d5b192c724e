"""Building, caching and doing without: each case in a process of its own, because loading is for good."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qdiff_fx.kernels import Status, status

ROOT = Path(__file__).parents[2]
needs_kernels = pytest.mark.skipif(not status().available, reason=status().reason or "-")

ATTEND = """
import sys, warnings, torch
from pathlib import Path
from qdiff_fx.kernels import int_attention, int_attention_vnni, status

def attend():
    torch.manual_seed(0)
    q = torch.randint(0, 256, (1, 2, 9, 8), dtype=torch.uint8)
    k = torch.randint(-128, 128, (1, 2, 12, 8), dtype=torch.int8)
    scale = torch.tensor(0.02)
    args = (q, k, k, None, scale, torch.tensor(128), scale, scale, 0.3, 8, torch.float32)
    torch.testing.assert_close(int_attention_vnni(*args), int_attention(*args), rtol=0, atol=2e-3)
"""


def start(code: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", ATTEND + code],
        env={**os.environ, "OMP_NUM_THREADS": "1", "QDIFF_KERNELS": ""} | environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(code: str, **environment: str) -> str:
    process = start(code, **environment)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


@pytest.mark.parametrize("choice", [pytest.param("0", marks=pytest.mark.slow), "reference"])
def test_switched_off_runs_the_reference_silently(choice: str, tmp_path: Path) -> None:
    code = """
warnings.simplefilter("error")
attend()
assert not status().available and "QDIFF_KERNELS" in status().reason, status()
"""
    run(code, QDIFF_KERNELS=choice, QDIFF_KERNELS_CACHE=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_without_compiler_warns_once_and_runs_the_reference(tmp_path: Path) -> None:
    code = """
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    attend()
    attend()
assert not status().available and "no C++ compiler" in status().reason, status()
messages = [str(w.message) for w in seen if w.category is RuntimeWarning]
assert len(messages) == 1 and "no C++ compiler" in messages[0], messages
"""
    run(code, PATH=str(tmp_path), CXX="", QDIFF_KERNELS_CACHE=str(tmp_path))


def test_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    compiler = tmp_path / "broken-c++"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit\necho no such luck >&2\nexit 3\n')
    compiler.chmod(0o755)
    code = """
assert not status().available
assert "exit code 3: no such luck" in status().reason, status()
"""
    run(code, CXX=str(compiler), QDIFF_KERNELS_CACHE=str(tmp_path / "cache"))


@needs_kernels
def test_other_processors_run_portable_kernels() -> None:
    """A processor that torch tells nothing of gets plain C++, without flags where the machine is an unknown one too."""
    code = """
import platform
from qdiff_fx.kernels.build import kernels_of
from qdiff_fx.kernels.isa import choose_isa
torch.cpu.get_capabilities = dict
attend()
assert status().kernel == "portable", status()
platform.machine = lambda: "riscv64"
assert kernels_of(choose_isa()).flags == ()
"""
    run(code)


@pytest.mark.slow
def test_an_unknown_choice_is_named(tmp_path: Path) -> None:
    code = """
warnings.simplefilter("ignore")
attend()
assert "avx1024: there are no such kernels" in status().reason and "portable" in status().reason, status()
"""
    run(code, QDIFF_KERNELS="avx1024")


@pytest.mark.slow
def test_an_instruction_set_this_processor_lacks_is_named_and_not_compiled(tmp_path: Path) -> None:
    code = """
warnings.simplefilter("ignore")
torch.cpu.get_capabilities = dict
attend()
assert "avx512_vnni: this processor does not have it" in status().reason, status()
"""
    run(code, QDIFF_KERNELS="avx512_vnni", QDIFF_KERNELS_CACHE=str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@needs_kernels
def test_processes_starting_together_build_once(tmp_path: Path) -> None:
    code = "attend()\nassert status().available, status()\nprint(status().library)"
    processes = [start(code, QDIFF_KERNELS_CACHE=str(tmp_path)) for _ in range(3)]
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert len(set(outputs)) == 1
    assert len(list(tmp_path.glob("*.so"))) == 2  # the operators and the kernels
    assert not list(tmp_path.glob("build-*"))


@pytest.mark.slow
@needs_kernels
def test_a_build_that_is_killed_leaves_nothing_broken(tmp_path: Path) -> None:
    for seconds in (1.0, 4.0, 9.0):
        process = start("attend()", QDIFF_KERNELS_CACHE=str(tmp_path))
        time.sleep(seconds)
        process.kill()
        process.communicate()
    run("attend()\nassert status().available, status()", QDIFF_KERNELS_CACHE=str(tmp_path))


def test_status_needs_a_reason_to_be_unavailable() -> None:
    with pytest.raises(ValueError, match="reason"):
        Status(False)
