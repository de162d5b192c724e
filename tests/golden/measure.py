"""One case from the float network to its digests, through the public calls alone."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from zoo import tensors_of

from qdiff_fx import QDiffError, calibrate, convert_qdiff, load_qdiff, prepare_qdiff, round_weights, save_qdiff

from .cases import Case, Run
from .digests import folder_digests, in_order
from .subjects import Inputs, Subject

Digests = dict[str, str]


@torch.no_grad()
def measure(case: Case, say: Callable[[str], object] = print) -> Digests:
    """Every digest of the case by name; what a backend refuses is said and left out.

    Raises:
        Unavailable: the network is not on this machine.
    """
    subject = case.load()
    example = subject.calibration[0]
    prepared = prepare_qdiff(subject.model, case.config, example, output_quantizers=case.quantizes_outputs)
    calibrate(prepared, subject.calibration, progress=False)
    if case.config.weight_rounding == "second_order":
        round_weights(prepared, subject.calibration, progress=False)
    digests = _of_the_float_network(subject)
    first, *others = case.runs
    converted = convert_qdiff(prepared, first.backend, output_quantizers=first.output_quantizers)
    digests |= _outputs(f"{first.name}, converted", converted, subject)
    with tempfile.TemporaryDirectory() as temporary:
        folder = save_qdiff(converted, Path(temporary) / "saved")
        digests |= folder_digests(folder) | _loaded(folder, first, subject)
        for run in others:
            try:
                if not run.output_quantizers:
                    digests |= _outputs(f"{run.name}, converted", converted.with_backend(run.backend), subject)
                digests |= _loaded(folder, run, subject)
            except QDiffError as error:
                say(f"{case.name}: {run.name} does not run here: {error}")
    return digests


def _loaded(folder: Path, run: Run, subject: Subject) -> Digests:
    network = load_qdiff(folder, run.backend, output_quantizers=run.output_quantizers)
    return _outputs(f"{run.name}, loaded", network, subject)


def _of_the_float_network(subject: Subject) -> Digests:
    """Where these differ, the cause lies before quantization."""
    inputs = [tensor for batch in subject.calibration for tensor in _tensors(batch)]
    return {"calibration data": in_order(inputs)} | _outputs("float", subject.model, subject)


def _tensors(inputs: Inputs) -> list[torch.Tensor]:
    """Everything a network is called with, by the names of its arguments; a plain number is a tensor too."""
    values = [inputs[name] for name in sorted(inputs)]
    return tensors_of([torch.tensor(value) if isinstance(value, (int, float)) else value for value in values])


def _outputs(name: str, network: Callable[..., Any], subject: Subject) -> Digests:
    return {f"{name}: {call}": in_order(tensors_of(network(**inputs))) for call, inputs in subject.calls.items()}
