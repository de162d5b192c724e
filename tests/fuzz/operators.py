"""Every operator of ours with hostile arguments, compiled against plain torch.

    python -m tests.fuzz.operators --count 100000 --seed 0
    python -m tests.fuzz.operators --line "int_conv 17 dilation[0]=6148914691236517206"

A valid call has to give the same on both; one whose arguments were spoiled has to be refused by both, in words, or by
neither. A worker does it, under a limit of memory: a call that kills or holds it is reported, and the rest goes on.
What a failing call prints is a line that repeats it.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # for modules that tests import by their names

from qdiff_fx.kernels import status  # noqa: E402
from tests.fuzz import watchdog  # noqa: E402
from tests.fuzz.compare import disagreement  # noqa: E402
from tests.fuzz.problems import VALID, Move, Problem, valid  # noqa: E402
from tests.fuzz.table import TABLE  # noqa: E402
from tests.fuzz.tensors import KINDS  # noqa: E402

INTEGERS = (
    *(-(2**63), 2**63 - 1, 6148914691236517206, 2**62, -(2**62), 2**40, 2**32, -(2**32), 2**31, 2**24 + 1, 2**20),
    *(1025, 257, 256, 255, 128, 17, 3, 2, 1, 0, -1, -128, -129),
)
NUMBERS = ("NaN", "Infinity", "-Infinity", "0.0", "-0.0", "-1.0", "1e-320", "1e-46", "1e-39", "1e300", "3.5e38", "2.0")
DTYPES = ("float64", "int32", "int64", "bool", "complex64", "float8_e4m3fn", "quint8", "uint8", "int8", "float16")
LISTS = ("[]", "fewer", "twice", "[1]", "[1, 1, 1, 1, 1, 1, 1, 1, 1]")


def problems(seed: int) -> Iterator[Problem]:
    """The table, then random ones without end."""
    yield from map(Problem.parse, TABLE)
    for number in itertools.count():
        yield random_problem(random.Random(f"{seed} {number}"))


def random_problem(draw: random.Random) -> Problem:
    """A call of some operator, a quarter of them valid."""
    operator, seed = draw.choice(list(VALID)), draw.randrange(1 << 31)
    count = draw.choice((0, 1, 1, 1, 1, 2, 2, 3))
    if not count:
        return Problem(operator, seed)
    arguments = valid(operator, seed)
    return Problem(operator, seed, tuple(_move(draw, arguments, draw.choice(list(arguments))) for _ in range(count)))


def _move(draw: random.Random, arguments: dict[str, object], name: str) -> Move:
    value = arguments[name]
    if isinstance(value, list) and draw.random() < 0.2:
        return Move(name, None, draw.choice(LISTS))
    if isinstance(value, list) and value:
        item = draw.randrange(len(value))
        return Move(name, item, _word(draw, value[item]))
    return Move(name, None, _word(draw, value))


def _word(draw: random.Random, value: object) -> str:
    if isinstance(value, torch.dtype):
        return f"torch.{draw.choice(DTYPES)}"
    if isinstance(value, float):
        return draw.choice(NUMBERS)
    if isinstance(value, int):
        return str(draw.choice(INTEGERS))
    return draw.choice((*KINDS, "None")) if isinstance(value, torch.Tensor) else draw.choice(list(KINDS))


def work(seed: int, file: str, first: int, last: int) -> None:
    """The worker: trials from `first` to before `last`."""
    worker = watchdog.Worker.open(file)
    status()  # loads what was built
    warnings.simplefilter("ignore")
    watchdog.limit_memory()
    for number, problem in zip(range(last), problems(seed)):
        if number < first:
            continue
        worker.trying(number, str(problem))
        if fault := _fault(problem):
            worker.found(f"{fault}: {problem}")


def _fault(problem: Problem) -> str:
    try:
        return disagreement(problem)
    except Exception as error:  # of the move itself: there is no such tensor (a transposed one of sparse rows)
        return "" if problem.moves else f"{type(error).__name__}: {error}"


def main() -> int:
    """The exit code is 0 unless something was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--line", help="one problem, in this process")
    parser.add_argument("--worker", nargs=3, metavar=("FILE", "FIRST", "LAST"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.line:
        print(disagreement(Problem.parse(arguments.line)) or "ok")
        return 0
    if arguments.worker:
        file, first, last = arguments.worker
        work(arguments.seed, file, int(first), int(last))
        return 0
    status()  # builds, which may take longer than a trial
    began = time.monotonic()
    command = watchdog.python("tests.fuzz.operators", "--seed", str(arguments.seed), "--worker")
    faults = watchdog.watch(command, arguments.count)
    print("\n".join(faults))
    seconds = time.monotonic() - began
    kernel = status().kernel or "plain torch"
    print(f"{arguments.count} calls, seed {arguments.seed}, {kernel}: {len(faults)} faults in {seconds:.0f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
