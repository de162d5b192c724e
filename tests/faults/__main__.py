"""Kill the long operations at random moments, and see that nothing is lost.

    python -m tests.faults --kills 200                # spread over all operations
    python -m tests.faults --kills 20 save build      # over these

Prints what went wrong and how to have it again, and exits with 1 if anything did.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.faults.kill import Failed, killed_and_resumed, run
from tests.faults.operations import OPERATIONS, load_inputs, make_inputs


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.split("\n")[0])
    parser.add_argument("operations", nargs="*", choices=[*OPERATIONS, []], help="all by default")
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    names = given.operations or list(OPERATIONS)
    each = -(-given.kills // len(names))
    with tempfile.TemporaryDirectory() as folder:
        problems = [line for name in names for line in kill_often(name, each, given.seed, Path(folder))]
    print(*problems, sep="\n")
    return 1 if problems else 0


def kill_often(name: str, times: int, seed: int, folder: Path) -> list[str]:
    """What went wrong, a line each."""
    operation, inputs, work = OPERATIONS[name], folder / "inputs", folder / "work"
    torch.set_num_threads(1)  # processes are forked
    if not inputs.exists():
        inputs.mkdir()
        run(lambda: str(make_inputs(inputs)))
        load_inputs(inputs)
    work.mkdir()
    start = time.monotonic()
    undisturbed = run(lambda: operation.run(inputs, work))
    shutil.rmtree(work)
    problems = []
    for number in range(times):
        work.mkdir()
        moments = random.Random(f"{name} {seed} {number}")
        try:
            result = killed_and_resumed(operation, inputs, work, undisturbed.seconds, moments)
            if result != undisturbed.result:
                problems.append(f"{name}, seed {seed}, kill {number}: another result than undisturbed")
        except Failed as error:
            problems.append(f"{name}, seed {seed}, kill {number}: {error}")
        shutil.rmtree(work)
    took = time.monotonic() - start
    print(
        f"{name}: {times} times killed, {len(problems)} problems; {undisturbed.seconds:.1f} s undisturbed, {took:.0f} s"
    )
    sys.stdout.flush()
    return problems


if __name__ == "__main__":
    sys.exit(main())
