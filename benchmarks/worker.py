"""The process that runs one backend of one network, one step at a time, when asked.

``python -m benchmarks.worker MODEL BACKEND --cache DIR`` loads, warms up, and answers lines on standard input:
``step`` runs one step, ``quit`` (or the end of input) ends it. With ``--prepare`` it only writes what a later worker
loads, so that the memory of calibrating is not counted as memory of running. Answers are JSON lines on the original
standard output; whatever libraries print goes to standard error.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.answers import answer, claim_stdout, serve, telling_errors
from benchmarks.artifacts import artifact_folder, ensure_artifact
from benchmarks.contender import Batch, Predict
from benchmarks.lineup import get_contender
from benchmarks.networks import get_network


def main() -> None:
    options = _parse()
    answers = claim_stdout()
    with telling_errors(answers):
        network, contender = get_network(options.model), get_contender(options.backend)
        if options.prepare:
            ensure_artifact(options.cache, network, contender)
            answer(answers, prepared=True)
            return
        started = time.perf_counter()
        predict = contender.load(network, artifact_folder(options.cache, network, contender) or Path())
        loaded = time.perf_counter()
        inputs = network.inputs()
        warmups = [_timed(predict, inputs) for _ in range(max(options.warmup, 1))]
        gc.collect()
        answer(answers, load_seconds=loaded - started, first_step_seconds=warmups[0])
        serve(stepping(predict, inputs), sys.stdin, answers)


def stepping(predict: Predict, inputs: Batch) -> Callable[[], dict[str, float]]:
    """What takes one step, and says how long."""
    return lambda: {"seconds": _timed(predict, inputs)}


def _timed(predict: Predict, inputs: Batch) -> float:
    with torch.no_grad():
        started = time.perf_counter()
        predict(**inputs)
        return time.perf_counter() - started


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run one backend of one network, one step at a time.")
    parser.add_argument("model")
    parser.add_argument("backend")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--prepare", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
