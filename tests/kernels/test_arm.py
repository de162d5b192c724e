"""Kernels for 64-bit ARM, cross-compiled and run under qemu: to the bit what portable ones make of the same calls."""

from __future__ import annotations

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from driver.build import AS_SHIPPED, QUICK, Driver, missing, run
from driver.cases import drawn_calls, write_cases

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
LACKING = missing("g++", COMPILER, EMULATOR)
pytestmark = pytest.mark.skipif(
    bool(LACKING), reason=f"no {LACKING} here (apt-get install qemu-user g++-aarch64-linux-gnu)"
)

# Processors that have no more than the instruction set needs, and some that have more.
PROCESSORS = {"neon": "cortex-a53", "neon_dotprod": "cortex-a76", "neon_i8mm": "max"}
MORE = [("neon", "a64fx"), ("neon", "max"), ("neon_dotprod", "neoverse-n1"), ("neon_dotprod", "max")]


class Tried:
    """Calls, what the portable kernels made of them on this processor, and the programs of others."""

    def __init__(self, folder: Path, temporary: Path, each: int, effort: str) -> None:
        self.cases, self.results = temporary / "cases", temporary / "results"
        self.calls, _ = drawn_calls(each)
        write_cases(self.cases, self.calls)
        drivers = [Driver(isa, "aarch64", COMPILER, effort) for isa in PROCESSORS]
        drivers.append(Driver("portable", platform.machine(), "g++", effort))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            *programs, portable = pool.map(lambda each: each.built(folder), drivers)
        self.programs = dict(zip(PROCESSORS, programs, strict=True))
        status, says = run(portable, "run", self.cases, self.results)
        assert status == 0, says

    def compare(self, isa: str, processor: str) -> tuple[int, str]:
        return run(self.programs[isa], "compare", self.cases, self.results, (EMULATOR, "-cpu", processor))


@pytest.fixture(scope="module")
def few(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Tried:
    return Tried(pytestconfig.cache.mkdir("driver"), tmp_path_factory.mktemp("few"), 8, QUICK)


@pytest.fixture(scope="module")
def many(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Tried:
    return Tried(pytestconfig.cache.mkdir("driver"), tmp_path_factory.mktemp("many"), 60, AS_SHIPPED)


@pytest.mark.slow
@pytest.mark.parametrize("isa", PROCESSORS)
def test_results_are_those_of_other_processors(few, isa):
    status, says = few.compare(isa, PROCESSORS[isa])
    assert status == 0, says
    assert says == f"{isa}: {len(few.calls)} cases, 0 of them wrong\n"


@pytest.mark.slow
def test_a_processor_that_lacks_the_instructions_stops(few):
    """So the emulator does know what its processors have not, and `neon` uses none of it."""
    assert "Illegal instruction" in few.compare("neon_i8mm", "cortex-a76")[1]
    assert "Illegal instruction" in few.compare("neon_dotprod", "cortex-a53")[1]


@pytest.mark.slow
@pytest.mark.parametrize(("isa", "processor"), [*PROCESSORS.items(), *MORE])
def test_many_results_on_more_processors(many, isa, processor):
    status, says = many.compare(isa, processor)
    assert status == 0, says
