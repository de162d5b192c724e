"""The command: see the package."""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the zoo, as tests import it

from . import __doc__ as description
from . import records
from .cases import Case, select
from .measure import Digests, measure
from .processor import this_processor
from .subjects import Unavailable

DIFFERENT, NO_RECORD = 1, 2
DEFAULT = Path()


def main() -> int:
    """Record or check; the exit code is 0, 1 (something differs) or 2 (nothing to compare with)."""
    arguments = _arguments()
    cases = select(arguments.cases)
    torch.set_num_threads(1)
    processor = this_processor()
    chosen = arguments.record or arguments.check
    file = records.record_file(processor) if chosen == DEFAULT else chosen
    print(f"{processor.key}, torch {processor.torch_version}, {len(cases)} cases", flush=True)
    if arguments.record:
        records.write(file, processor, dict(_measured(cases)))
        print(f"recorded in {file}")
        return 0
    if not file.is_file():
        print(f"no results are recorded for this kind of processor ({file} is missing).")
        print(f"There are records of {', '.join(records.known_kinds()) or 'none'}.")
        print("To compare two commits here, run --record with the first and --check with the second.")
        return NO_RECORD
    return _check(cases, records.read(file))


def _check(cases: list[Case], recorded: Mapping[str, Mapping[str, str]]) -> int:
    found, compared, missing = [], 0, 0
    for name, digests in _measured([case for case in cases if case.name in recorded]):
        found += records.differences(name, recorded[name], digests)
        compared += len(digests)
    for case in cases:
        if case.name not in recorded:
            missing += 1
            print(f"{case.name}: not in the record of this kind of processor")
    print(*found, sep="\n", end="\n" if found else "")
    print(f"{compared} digests compared, {len(found)} differ, {missing} cases without record")
    if found:
        return DIFFERENT
    return 0 if compared else NO_RECORD


def _measured(cases: list[Case]) -> Iterator[tuple[str, Digests]]:
    """The digests of each case that can be computed here, as soon as they are."""
    for number, case in enumerate(cases, 1):
        start = time.perf_counter()
        try:
            digests = measure(case)
        except Unavailable as reason:
            print(f"[{number}/{len(cases)}] {case.name}: skipped, {reason}", flush=True)
            continue
        seconds = time.perf_counter() - start
        print(f"[{number}/{len(cases)}] {case.name}: {len(digests)} digests, {seconds:.0f} s", flush=True)
        yield case.name, digests


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m tests.golden", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    file = {"metavar": "FILE", "nargs": "?", "type": Path, "const": DEFAULT}
    what.add_argument("--record", help="write what is computed now; FILE is by default this processor's record", **file)
    what.add_argument("--check", help="compare what is computed now with the record", **file)
    parser.add_argument("--cases", nargs="+", default=[], metavar="WORD", help="only those whose names hold a word")
    arguments = parser.parse_args()
    try:
        select(arguments.cases)
    except ValueError as error:
        parser.error(str(error))
    return arguments


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module=r"torch\..*")
    logging.disable(logging.WARNING)
    sys.exit(main())
