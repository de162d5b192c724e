"""Saved folders written by hand, checksums and all: a few nodes between the inputs x and t and one output."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from qdiff_fx.config import QDiffConfig
from qdiff_fx.storage.artifact import FORMAT_VERSION, GRAPH, KIND, WEIGHTS
from qdiff_fx.storage.sealed import seal

Row = dict[str, Any]
X, T = (2, 2, 4, 4), (2,)


def reads(name: str) -> Row:
    return {"node": name}


def call(name: str, target: str, *args: Any, **kwargs: Any) -> Row:
    made = {"name": name, "op": "call_function", "target": target, "args": list(args)}
    return made | ({"kwargs": kwargs} if kwargs else {})


def tensor(name: str) -> Row:
    return {"name": name, "op": "get_attr", "target": name, "args": []}


def relu() -> Row:
    return call("y", "aten.relu.default", reads("x"))


def inputs() -> list[Row]:
    return [
        {"name": "x", "op": "placeholder", "target": "x", "args": [], "sample": True, "val": ["float32", list(X)]},
        {"name": "t", "op": "placeholder", "target": "t", "args": [], "timestep": True, "val": ["float32", list(T)]},
    ]


def signature() -> dict[str, Any]:
    return {
        "parameters": [{"name": name, "required": True, "keyword_only": False, "default": None} for name in ("x", "t")],
        "inputs": [
            {"name": "x", "dtype": "float32", "dims": [["batch", 1], 2, 4, 4], "role": "sample"},
            {"name": "t", "dtype": "float32", "dims": [["batch", 1]], "role": "timestep"},
        ],
        "constants": {},
        "output": {"kind": "tensor"},
        "dtype": "float32",
        "config": {},
        "attributes": {},
    }


def write(
    folder: Path,
    nodes: Sequence[Row] = (),
    tensors: Mapping[str, torch.Tensor] | None = None,
    *,
    packed: Any = None,
    **manifest: Any,
) -> Path:
    """A folder whose graph is these nodes, after the inputs and before the output, which is the last of them.

    Args:
        folder: to be made.
        nodes: of the graph; by default one that does nothing.
        tensors: to be stored.
        packed: what `graph.json` says about packed codes.
        manifest: fields in place of the usual ones; those of the signature by its own names.
    """
    folder.mkdir(parents=True)
    nodes = list(nodes) or [relu()]
    last = {"name": "output", "op": "output", "target": "output", "args": [{"tuple": [reads(nodes[-1]["name"])]}]}
    (folder / GRAPH).write_text(json.dumps({"nodes": [*inputs(), *nodes, last], "packed": packed or {}}))
    save_file(dict(tensors or {"unread": torch.zeros(4)}), folder / WEIGHTS)
    described = signature()
    own = {*described, "batched_outputs"} - {"config"}
    described |= {name: manifest.pop(name) for name in list(manifest) if name in own}
    described |= {"config": manifest.pop("network_config", {})}
    whole = {
        "format_version": FORMAT_VERSION,
        "torch_version": torch.__version__,
        "config": QDiffConfig().to_json(),
        "signature": described,
        "source": "",
    }
    seal(folder, KIND, whole | manifest)
    return folder


def example() -> dict[str, torch.Tensor]:
    return {"x": torch.ones(X), "t": torch.tensor([1.0, 2.0])}
