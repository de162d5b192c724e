"""Random networks through all of qdiff_fx: `python -m tests.fuzz.graphs --count 1000 --seed 0`.

Prints what fails, as the shortest program found that fails in the same way: `attempt(program(…))` tries it again.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from unittest import mock

import torch

from tests.fuzz.oracle import Invalid, Trial, attempt
from tests.fuzz.program import Draw, Program

SHRINK_SECONDS = 60.0


def draw(seed: int) -> Program:
    return Draw(random.Random(seed)).program(seed)


def tried(program: Program) -> Trial | None:
    """What came of it; None where the float network itself does not run."""
    try:
        # Loading collects garbage, through all of torch and sympy: it would take longer than all else.
        with mock.patch("qdiff_fx.networks.quantized.release_unused"):
            return attempt(program)
    except Invalid:
        return None


def shrink(program: Program, trial: Trial, seconds: float = SHRINK_SECONDS) -> tuple[Program, Trial]:
    """The shortest program found in that time that fails in the same way."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        smaller = next(_failing_alike(program, trial, until), None)
        if smaller is None:
            break
        program, trial = smaller
    return program, trial


def _failing_alike(program: Program, trial: Trial, until: float) -> Iterator[tuple[Program, Trial]]:
    for simpler in program.simpler():
        if time.monotonic() > until:
            return
        found = tried(simpler)
        if found is not None and _kind(found) == _kind(trial):
            yield simpler, found


def _kind(trial: Trial) -> tuple[str, type]:
    return (trial.finding.kind if trial.finding else ""), type(trial.error)


@dataclass
class Tally:
    """What came of many programs."""

    counts: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    lowest: dict[str, tuple[float, int]] = field(default_factory=dict)

    def add(self, seed: int, trial: Trial | None) -> None:
        if trial is None:
            self.counts["not a network"] += 1
            return
        self.counts["tried"] += 1
        if trial.refused:
            self.counts["with a refusal"] += 1
            self.refusals[trial.refused[:100]] += 1
        if trial.finding is not None:
            self.counts[f"failed: {trial.finding.kind}"] += 1
        for step, seconds in trial.seconds.items():
            self.seconds[step.partition(" ")[0]] += seconds
        faithful = trial.db.get("faithful", 0.0)
        for name, db in trial.db.items():
            found = (round(db if name == "faithful" else db - faithful, 1), seed)
            self.lowest[name] = min(found, self.lowest.get(name, found))

    def __str__(self) -> str:
        lines = [f"{name}: {count}" for name, count in self.counts.most_common()]
        lines += [f"  refused {count}: {reason}" for reason, count in self.refusals.most_common(12)]
        lines += [f"processor seconds: {', '.join(f'{name} {s:.0f}' for name, s in self.seconds.most_common(8))}"]
        lines += ["lowest dB against float, the others less that, and seeds:", f"  {self.lowest}"]
        return "\n".join(lines)

    @property
    def failed(self) -> bool:
        return any(name.startswith("failed") for name in self.counts)


def fuzz(seeds: range, seconds: float = float("inf"), *, shrinking: bool = True, trace: bool = False) -> Tally:
    """Try the programs of these seeds for so long."""
    tally, until = Tally(), time.monotonic() + seconds
    for seed in seeds:
        if time.monotonic() > until:
            break
        program = draw(seed)
        trial = tried(program)
        tally.add(seed, trial)
        if trial is not None and trial.finding is not None:
            print(f"seed {seed}: {trial.finding}", flush=True)
            if shrinking:
                program, trial = shrink(program, trial)
            print(f"{trial.finding}\n{program}", flush=True)
            if trace and trial.error is not None:
                traceback.print_exception(trial.error)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="how many networks")
    parser.add_argument("--seed", type=int, default=0, help="of the first; the others follow")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--no-shrink", action="store_true", help="print failing programs as they were drawn")
    parser.add_argument("--trace", action="store_true", help="print tracebacks")
    given = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(given.seed, given.seed + given.count)
    tally = fuzz(seeds, given.seconds, shrinking=not given.no_shrink, trace=given.trace)
    print(tally)
    return int(tally.failed)


if __name__ == "__main__":
    sys.exit(main())
