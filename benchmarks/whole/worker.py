"""The process that draws images by one pipeline in one way, when asked; see `benchmarks.worker`.

``python -m benchmarks.whole.worker PIPELINE BACKEND --cache DIR --steps 20 --timed 3 --guidance 7.5``: of 20 steps
three are taken, and the time of the UNet counts for 20.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.answers import answer, claim_stdout, serve, telling_errors
from benchmarks.memory import peak_rss_bytes
from benchmarks.whole.clock import NOTHING, Clock, Time
from benchmarks.whole.contender import FLOAT, Contender, get_contender
from benchmarks.whole.subject import UNET, Subject, get_subject, network_at

Draw = Callable[[], dict[str, Any]]


def main() -> None:
    options = _parse()
    answers = claim_stdout()
    with telling_errors(answers):
        subject, contender = get_subject(options.model), get_contender(options.backend)
        folder = options.cache / subject.name
        if options.prepare:
            prepare(subject, contender, folder)
            answer(answers, prepared=True)
            return
        pipe = contender.load(subject, folder / FLOAT, folder / contender.artifact)
        pipe.set_progress_bar_config(disable=True)
        draw = drawing(subject, pipe, options.steps, options.timed or options.steps, options.guidance)
        first = draw()
        seconds, processor = first["counted"]
        gc.collect()
        answer(
            answers,
            processor_from_start=time.process_time() + processor,
            counted_seconds=seconds,
            peak_rss_bytes=peak_rss_bytes(),
        )
        serve(draw, sys.stdin, answers)


def prepare(subject: Subject, contender: Contender, folder: Path) -> None:
    """Write the float pipeline, and what the contender makes of it, where they are not there yet."""
    from qdiff_fx.atomic import replacing_folder  # which what is timed does without

    if not (folder / FLOAT).exists():
        with replacing_folder(folder / FLOAT) as unfinished:
            subject.write(unfinished)
    if not (folder / contender.artifact).exists():
        with replacing_folder(folder / contender.artifact) as unfinished:
            contender.prepare(subject, folder / FLOAT, unfinished)


def drawing(subject: Subject, pipe: Any, steps: int, timed: int, guidance: float) -> Draw:
    """Draws one image in `timed` steps; says seconds and processor seconds of each part, as if it were `steps`.

    ``counted`` is what was added for those that were not taken.
    """
    clock = Clock({part: network_at(pipe, place) for part, place in subject.parts.items()})
    arguments = subject.arguments(timed, guidance)

    def draw() -> dict[str, Any]:
        begun = Time.now()
        pipe(**arguments)
        whole, parts = Time.now() - begun, clock.read()
        rest = whole
        for part in parts.values():
            rest = rest - part
        counted = NOTHING.plus(parts[UNET], steps / timed - 1)
        whole, parts[UNET] = whole.plus(counted), parts[UNET].plus(counted)
        found = {part: list(taken) for part, taken in (parts | {"rest": rest}).items()}
        return {"seconds": whole.seconds, "processor": whole.processor, "parts": found, "counted": list(counted)}

    return draw


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw images by one pipeline in one way.")
    parser.add_argument("model")
    parser.add_argument("backend")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--timed", type=int, default=0)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--prepare", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
