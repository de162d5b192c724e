"""A program with q/dq operators as an ONNX model, and its file."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import onnx_ir
import torch
from torch.export import ExportedProgram

from qdiff_fx.atomic import replacing_file
from qdiff_fx.errors import BackendError
from qdiff_fx.export.onnx_quantizers import OPSET, translations
from qdiff_fx.signature.inputs import Size, TensorInput

LARGEST = 1 << 31
"""Bytes of one file of protocol buffers."""
OUTPUT = "out_sample"
NIBBLE = range(-8, 8)


def write_onnx(program: ExportedProgram, inputs: Sequence[TensorInput], file: Path) -> None:
    """Write it; weights whose codes fit are stored in four bits.

    Raises:
        BackendError: an operator of the program has no counterpart in ONNX, or the model is larger than a file may be.
        ArtifactError: the file cannot be written.
    """
    model = _model(program, [each.name for each in inputs])
    _name_sizes(model, inputs)
    for value in model.graph.initializers.values():
        _pack(value)
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    if size >= LARGEST:
        raise BackendError(
            f"its weights take {size:,} bytes, and a file of ONNX holds {LARGEST:,}",
            where=str(file),
            fix="Quantize to fewer bits, or export a .pt2 program",
        )
    with replacing_file(file, expected_bytes=size) as draft:
        onnx_ir.save(model, os.fspath(draft))


def _model(program: ExportedProgram, names: list[str]) -> onnx_ir.Model:
    try:
        with _quiet():
            found = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                custom_translation_table=translations(),
                input_names=names,
                output_names=[OUTPUT, *(f"{OUTPUT}_{index}" for index in range(1, _output_count(program)))],
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        cause = str(error.__cause__ or error).strip().splitlines()[0]
        raise BackendError(
            f"it cannot be written ({cause})",
            where="ONNX",
            fix="Export a .pt2 program, or keep the operator out of the network",
        ) from error
    assert found is not None
    return found.model


def _output_count(program: ExportedProgram) -> int:
    return len(program.graph_signature.user_outputs)


def _name_sizes(model: onnx_ir.Model, inputs: Sequence[TensorInput]) -> None:
    """Open sizes by the names they have in the network: the exporter numbers them."""
    names: dict[str, str] = {}
    for value, spec in zip(model.graph.inputs, inputs, strict=True):
        for found, size in zip(value.shape or (), spec.dims, strict=True):
            if isinstance(size, Size) and isinstance(found, onnx_ir.SymbolicDim) and found.value:
                names.setdefault(found.value, size.symbol if size.multiple == 1 else f"{size.multiple}*{size.symbol}")
    numbered = re.compile(r"\bs\d+\b")
    for value in _values(model):
        if value.shape is not None:
            sizes = [
                numbered.sub(lambda at: names.get(at[0], at[0]), str(each.value))
                if isinstance(each, onnx_ir.SymbolicDim)
                else each
                for each in value.shape
            ]
            value.shape = onnx_ir.Shape(sizes)


def _values(model: onnx_ir.Model) -> Iterator[Any]:
    yield from model.graph.inputs
    for node in model.graph:
        yield from node.outputs


def _pack(value: Any) -> None:
    """Codes that all fit into four bits are stored so; nothing is lost."""
    if value.dtype != onnx_ir.DataType.INT8 or value.const_value is None:
        return
    if any(node.op_type != "DequantizeLinear" for node, _ in value.uses()):
        return
    codes = value.const_value.numpy()
    if not codes.size or codes.min() not in NIBBLE or codes.max() not in NIBBLE:
        return
    value.const_value = onnx_ir.Tensor(codes.astype(ml_dtypes.int4), dtype=onnx_ir.DataType.INT4, name=value.name)
    value.dtype = onnx_ir.DataType.INT4


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of packages it could use."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
