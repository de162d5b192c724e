"""Saved folders that were changed, checksums made right again, loaded and called on `reference` and `native`.

    python -m tests.fuzz.folders --count 10000 --seed 0
    python -m tests.fuzz.folders --seed 0 --number 4711

Each ends in an error in words, or in a network that runs, of which a call may end in an error in words. Anything else
is a fault: another exception, a crash, a hang; memory is limited. A worker does it; one that dies or hangs is reported,
and the rest goes on. `--number` repeats one in this process.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # for modules that tests import by their names

from qdiff_fx import load_prepared, load_qdiff  # noqa: E402
from qdiff_fx.errors import QDiffError  # noqa: E402
from qdiff_fx.kernels import status  # noqa: E402
from qdiff_fx.signature import CallSignature  # noqa: E402
from qdiff_fx.signature.inputs import TensorInput  # noqa: E402
from tests.fuzz import watchdog  # noqa: E402
from tests.fuzz.base_folders import WEIGHTS, write_all  # noqa: E402
from tests.fuzz.folder_mutations import mutate  # noqa: E402

MOST_ELEMENTS = 1 << 20  # of an input that a changed signature asks for
PATIENCE = 60.0


def trial(bases: Path, scratch: Path, seed: int, number: int) -> tuple[Path, str]:
    """The folder of one trial, and what was changed in it."""
    draw = random.Random(f"{seed} {number}")
    there = {name: weight for name, weight in WEIGHTS.items() if (bases / name).is_dir()}
    base = draw.choices(list(there), list(there.values()))[0]
    folder = scratch / "net"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(bases / base, folder)
    return folder, f"{base}: {mutate(folder, draw)}"


def outcome(folder: Path) -> tuple[str, str]:
    """How far it came, and the fault, if there is one."""
    came = "refused"
    try:
        if (folder / "prepared.json").exists():
            came = _called(load_prepared(folder))
        else:
            for backend in ("reference", "native"):
                came = _called(load_qdiff(folder, backend))
    except QDiffError as error:
        text = str(error)
        return came, "" if text.replace("\n", "").isprintable() else f"obeyed by a terminal: {text!r}"
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return came, f"{type(error).__name__}: {str(error)[:200]!r} at {Path(last.filename).name}:{last.lineno}"
    return came, ""


def _called(network: Any) -> str:
    signature: CallSignature = network.signature
    tensors = {spec.name: _input(spec) for spec in signature.inputs}
    if any(each is None for each in tensors.values()):
        return "loaded"
    try:
        with torch.no_grad():
            network(**_nested({**signature.constants, **tensors}))
    except QDiffError:
        return "failed in a call"
    return "ran"


def _input(spec: TensorInput) -> torch.Tensor | None:
    """A tensor that the signature asks for, unless it asks for an absurd one."""
    shape = [dim if isinstance(dim, int) else 2 * dim.multiple for dim in spec.dims]
    if torch.empty(shape, device="meta").numel() > MOST_ELEMENTS:
        return None
    return torch.ones(shape).to(spec.dtype)


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by dotted names, as the call has them."""
    found: dict[str, Any] = {}
    for name, value in flat.items():
        *owners, last = name.split(".")
        holder = found
        for each in owners:
            inner = holder.setdefault(each, {})
            holder = inner if isinstance(inner, dict) else {}
        holder[last] = value
    return found


def work(bases: Path, seed: int, file: str, first: int, last: int) -> None:
    """The worker: trials from `first` to before `last`."""
    worker = watchdog.Worker.open(file)
    status()
    warnings.simplefilter("ignore")
    watchdog.limit_memory()
    came: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch:
        for number in range(first, last):
            worker.trying(number, f"--seed {seed} --number {number}")
            folder, changes = trial(bases, Path(scratch), seed, number)
            worker.trying(number, f"--seed {seed} --number {number}, {changes}")
            far, fault = outcome(folder)
            came[far] += 1
            if fault:
                line = ascii(f"{fault}: --seed {seed} --number {number}, {changes}")
                worker.found(line)
                print(line, flush=True)
    print(", ".join(f"{count} {how}" for how, count in came.most_common()), flush=True)


def main() -> int:
    """The exit code is 0 unless something was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--number", type=int, help="one trial, in this process")
    parser.add_argument(
        "--bases", type=Path, help="folders of an earlier run to start from; made where they are not there"
    )
    parser.add_argument("--worker", nargs=3, metavar=("FILE", "FIRST", "LAST"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        file, first, last = arguments.worker
        work(arguments.bases, arguments.seed, file, int(first), int(last))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        bases = arguments.bases or Path(scratch) / "bases"
        if not bases.is_dir():
            bases.mkdir(parents=True)
            write_all(bases)
        if arguments.number is not None:
            folder, changes = trial(bases, Path(scratch), arguments.seed, arguments.number)
            print(changes, *outcome(folder), sep="\n")
            return 0
        status()  # builds, which may take longer than a trial
        began = time.monotonic()
        command = watchdog.python(
            "tests.fuzz.folders", "--seed", str(arguments.seed), "--bases", str(bases), "--worker"
        )
        faults = watchdog.watch(command, arguments.count, patience=PATIENCE)
    print("\n".join(faults))
    seconds = time.monotonic() - began
    print(f"{arguments.count} folders, seed {arguments.seed}: {len(faults)} faults in {seconds:.0f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
