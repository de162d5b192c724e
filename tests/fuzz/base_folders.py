"""Saved folders to start from: small ones of different kinds, and the digits network."""

from __future__ import annotations

import shutil
from pathlib import Path

import crafted_folders
import tiny_graphs
import torch
import zoo

from qdiff_fx import QDiffConfig, calibrate, convert_qdiff, prepare_qdiff, round_weights, save_prepared, save_qdiff
from qdiff_fx.sources import resolve

SAVED_BY_0_1 = Path(__file__).parents[1] / "storage" / "saved_by_0_1" / "mixed"
# How often each is taken. The small ones are tens a second; the digits network is one.
WEIGHTS = {"mixed": 8, "sum": 4, "attention": 4, "matmul": 4, "crafted": 4, "prepared": 6, "digits": 1}


def write_all(folder: Path) -> None:
    """One folder for each of `WEIGHTS`, under its name."""
    torch.manual_seed(0)
    write_small(folder)
    for kind in ("sum", "attention", "matmul"):
        save_qdiff(zoo.quantized(f"handwritten_{kind}", QDiffConfig(weight_bits=4)), folder / kind)
    _write_prepared(folder / "prepared")
    _write_digits(folder / "digits")


def write_small(folder: Path) -> None:
    """Those that take no time to make."""
    shutil.copytree(SAVED_BY_0_1, folder / "mixed")
    _write_crafted(folder / "crafted")


def _write_crafted(folder: Path) -> None:
    """Few nodes of many kinds: sizes, tables, pieces, creation, a quantizer."""
    reads, call = crafted_folders.reads, crafted_folders.call
    x, codes = reads("x"), ("quantized_decomposed.quantize_per_tensor.default", "uint8")
    tail = [0.1, 3, 0, 255, {"dtype": codes[1]}]
    rows = [
        crafted_folders.tensor("table"),
        crafted_folders.tensor("index"),
        call("size", "aten.sym_size.int", x, 2),
        call("half", "operator.floordiv", reads("size"), 2),
        call("row", "aten.index_select.default", reads("table"), 0, reads("index")),
        call("pieces", "aten.chunk.default", x, 2, 1),
        call("first", "operator.getitem", reads("pieces"), 0),
        call("ones", "aten.full.default", [2, 2, 4, 4], 0.5, dtype={"dtype": "float32"}, device={"device": "cpu"}),
        call("joined", "aten.cat.default", [reads("first"), reads("first")], 1),
        call("sum", "aten.add.Tensor", reads("joined"), reads("ones"), alpha=2),
        call("pooled", "aten.max_pool2d.default", reads("sum"), [2, 2], [2, 2]),
        call("up", "aten.upsample_nearest2d.vec", reads("pooled"), None, [2.0, 2.0]),
        call("codes", codes[0], reads("up"), *tail),
        call("values", "quantized_decomposed.dequantize_per_tensor.default", reads("codes"), *tail),
        call("tiled", "aten.repeat.default", reads("values"), [1, 1, 1, reads("half")]),
        call("y", "aten.mul.Tensor", reads("tiled"), reads("row")),
    ]
    tensors = {"table": torch.rand(5, 1), "index": torch.tensor([2])}
    crafted_folders.write(folder, rows, tensors, attributes={"add_embedding.linear_1.in_features": 7})


def _write_prepared(folder: Path) -> None:
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([40.0, 900.0])
    network = tiny_graphs.prepared(tiny_graphs.Shortcut(), x, t, weight_bits=4, timestep_bins=4)
    round_weights(network, [{"x": x, "t": t}], progress=False)
    save_prepared(network, folder)


def _write_digits(folder: Path) -> None:
    source = resolve("digits")
    inputs = source.example_inputs()
    prepared = prepare_qdiff(source.unet, QDiffConfig(weight_bits=4, weight_range="max"), inputs)
    calibrate(prepared, [inputs], progress=False)
    save_qdiff(convert_qdiff(prepared, "reference", source="digits"), folder)
