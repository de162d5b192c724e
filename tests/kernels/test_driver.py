"""The kernels without torch (`tests/driver`), on every instruction set of this processor: how others are tried too.

The driver compares one thread with three, and the direct convolution with Winograd's. Here its results are compared
with what plain torch makes of the same calls, and those of one instruction set with those of another.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import pytest
from driver.build import Driver, missing, run
from driver.cases import drawn_calls, read_results, write_cases
from exact_attention import assert_exact
from kernel_calls import NORM_RESOLUTION, Call, assert_close
from torch import Tensor

from qdiff_fx.kernels.isa import supported_isas

pytestmark = pytest.mark.skipif(bool(missing("g++")), reason="no g++ to build the driver with")

EACH = 12
OTHERS = [isa for isa in supported_isas() if isa != "portable"]
FUSED = ("avx512_vnni",)  # rounds products and sums at once, where the others round one after the other


@dataclass(frozen=True)
class Run:
    """What the portable kernels made of some calls."""

    folder: Path
    cases: Path
    results: Path
    calls: list[Call]
    references: list[Tensor]


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Run:
    folder = pytestconfig.cache.mkdir("driver")
    cases, results = (tmp_path_factory.mktemp("driver") / name for name in ("cases", "results"))
    calls, references = drawn_calls(EACH)
    write_cases(cases, calls)
    status, says = run(driver("portable").built(folder), "run", cases, results)
    assert status == 0, says
    return Run(folder, cases, results, calls, references)


def driver(isa: str) -> Driver:
    return Driver(isa, platform.machine(), "g++")


def assert_all_close(results: Path, run: Run) -> None:
    made = read_results(results, run.calls, run.references)
    for call, actual, reference in zip(run.calls, made, run.references, strict=True):
        if call.operator == "int_attention_vnni":
            assert_exact(actual, tuple(call.arguments.values()))
        else:
            assert_close(actual, reference, NORM_RESOLUTION if "norm" in call.operator else 2e-6)


def test_the_driver_makes_of_them_what_plain_torch_makes(portable):
    assert_all_close(portable.results, portable)


def test_it_says_which_result_is_another(portable, tmp_path):
    written = bytearray(portable.results.read_bytes())
    written[-1] ^= 1
    (tmp_path / "results").write_bytes(written)
    status, says = run(driver("portable").built(portable.folder), "compare", portable.cases, tmp_path / "results")
    assert status == 1
    assert f"case {len(portable.calls) - 1}, int_conv, directly with 1 thread" in says
    assert f"{len(portable.calls)} cases, 1 of them wrong" in says


def test_it_says_what_a_case_lacks(portable, tmp_path):
    (tmp_path / "cases").write_text("call layer_norm_act\nend\n")
    status, says = run(driver("portable").built(portable.folder), "run", tmp_path / "cases", tmp_path / "results")
    assert status == 2
    assert "layer_norm_act lacks x" in says


@pytest.mark.slow
@pytest.mark.parametrize("isa", OTHERS)
def test_every_instruction_set_gives_the_same(portable, tmp_path, isa):
    program = driver(isa).built(portable.folder)
    if isa not in FUSED:
        status, says = run(program, "compare", portable.cases, portable.results)
        assert status == 0, says
        return
    status, says = run(program, "run", portable.cases, tmp_path / "results")
    assert status == 0, says
    assert_all_close(tmp_path / "results", portable)
