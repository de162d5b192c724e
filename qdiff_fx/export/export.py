"""The public call."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch

from qdiff_fx.atomic import replacing_file
from qdiff_fx.errors import ConfigError
from qdiff_fx.export.program import exported_program
from qdiff_fx.networks import QuantizedUNet

ONNX, PROGRAM = ".onnx", ".pt2"
NEEDED = ("onnx", "onnxscript")


def export_qdiff(quantized: QuantizedUNet, file: str | os.PathLike[str]) -> Path:
    """Write a quantized network for other runtimes, as the q/dq graph that the "reference" backend runs.

    Args:
        quantized: on whatever backend. LoRAs that are on are written as layers in float.
        file: ``x.onnx``: an ONNX model (opset 21) with QuantizeLinear and DequantizeLinear, and weights of four bits
            where their codes fit; needs ``pip install 'qdiff_fx[onnx]'``. ``x.pt2``: a program of `torch.export` with
            `quantized_decomposed` operators, which `torch.export.load` reads.
    Returns:
        The file. What it takes are the network's tensors, with their types and sizes: in ONNX by dotted name
        ("added_cond_kwargs.time_ids"), with a timestep for each sample. It returns the prediction, "out_sample". What
        survives is in docs/export.md.
    Raises:
        ConfigError: another ending, or a package is missing.
        BackendError: the network does something that cannot be written.
        ArtifactError: the file cannot be written; nothing half-written stays.
    """
    target = Path(file)
    if target.suffix not in (ONNX, PROGRAM):
        raise ConfigError(
            f"{target.suffix or 'no ending'!r} is no format that networks are exported to",
            where=str(target),
            fix=f"Write {target.stem}{ONNX} or {target.stem}{PROGRAM}",
        )
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None] if target.suffix == ONNX else []
    if missing:
        raise ConfigError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed",
            where=str(target),
            fix="pip install 'qdiff_fx[onnx]'",
        )
    program = exported_program(quantized.computed_graph(), quantized.signature)
    if target.suffix == PROGRAM:
        with replacing_file(target) as draft, draft.open("wb") as stream:
            torch.export.save(program, stream)
        return target
    from qdiff_fx.export.onnx_file import write_onnx  # brings onnx

    write_onnx(program, quantized.signature.inputs, target)
    return target
