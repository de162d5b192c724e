"""Changes of a saved folder that somebody who means harm could make: checksums are made right again."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from qdiff_fx.ir.ops import TABLE, resolve
from qdiff_fx.storage.artifact import MANIFEST as QUANTIZED
from qdiff_fx.storage.prepared import MANIFEST as PREPARED
from qdiff_fx.storage.sealed import manifest_digest, manifest_text

Json = Any
INTEGERS = (
    0,
    1,
    -1,
    2,
    3,
    5,
    7,
    8,
    16,
    17,
    127,
    128,
    255,
    256,
    1000,
    65535,
    1 << 20,
    1 << 31,
    (1 << 31) - 1,
    -(1 << 31),
)
HUGE = (1 << 40, (1 << 63) - 1, -(1 << 63), (2**64 + 2) // 3, 10**25, 10**5000)
FLOATS = (0.0, -0.0, 1e-320, 1e-46, 0.5, 1.0, -1.0, 1e30, 1e300, -1e300)
WORDS = (
    "",
    "x",
    "t",
    "y",
    "self",
    "torch",
    "forward",
    "__class__",
    "a.b",
    "\x1b[2J",
    "\ud800",
    "é",
    "x" * 5000,
    "re:(a*)*b",
)
DTYPES = (
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int8",
    "uint8",
    "bool",
    "complex64",
    "quint8",
    "load",
)
ODD = (
    {"float": "nan"},
    {"float": "inf"},
    {"float": "-inf"},
    {"device": "meta"},
    {"device": "cuda:0"},
    {"slice": [0, 1, 1]},
)
STORED = [row.name for row in TABLE.values() if row.stored]


def mutate(folder: Path, draw: random.Random) -> str:
    """Change a folder in up to three ways; returns what was done, in words."""
    manifest = QUANTIZED if (folder / QUANTIZED).is_file() else PREPARED
    ways: list[Callable[[Path, str, random.Random], str]] = [
        *[_change_json] * 8,
        *[_change_node] * 8,
        *[_insert_node] * 6,
        *[_change_tensor] * 4,
        *[_change_bytes] * 2,
        _change_file,
    ]
    done = []
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        way = draw.choice(ways)
        with contextlib.suppress(Exception):  # the change before may have left nothing to change
            done.append(way(folder, manifest, draw))
        if way is _change_file:  # reading it again would be our own fault
            break
    _seal(folder, manifest)
    return ", ".join(done)


def _seal(folder: Path, manifest: str) -> None:
    if not (folder / manifest).is_file():
        return
    with contextlib.suppress(Exception):  # there may be no manifest any more
        found = json.loads((folder / manifest).read_text())
        for name in found["sha256"]:
            if (folder / name).is_file():
                found["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        found["manifest_sha256"] = manifest_digest(found)
        (folder / manifest).write_text(manifest_text(found))


def _value(draw: random.Random) -> Json:
    kind = draw.randrange(9)
    if kind < 3:
        return draw.choice(INTEGERS)
    return [
        lambda: draw.choice(HUGE),
        lambda: draw.choice(FLOATS),
        lambda: draw.choice(WORDS),
        lambda: draw.choice((None, True, False, [], {}, [[]], [None], "nan")),
        lambda: copy.deepcopy(draw.choice(ODD)),
        lambda: {"dtype": draw.choice(DTYPES)},
    ][kind - 3]()


def _places(found: Json) -> Iterator[tuple[Any, Any]]:
    """Every container and key of a document."""
    pending = [found]
    while pending:
        current = pending.pop()
        keys = list(current) if isinstance(current, dict) else range(len(current))
        for key in keys:
            yield current, key
            if isinstance(current[key], dict | list):
                pending.append(current[key])


def _read(file: Path) -> Json:
    return json.loads(file.read_text())


def _write(file: Path, found: Json) -> None:
    file.write_text(json.dumps(found, separators=(",", ":")) if file.name == "graph.json" else manifest_text(found))


def _change_json(folder: Path, manifest: str, draw: random.Random) -> str:
    """One value of a document becomes another, goes, or changes places."""
    file = folder / draw.choice((manifest, "graph.json"))
    found = _read(file)
    places = list(_places(found))
    holder, key = draw.choice(places)
    way = draw.randrange(6)
    old = str(holder[key])[:30]
    if way == 0:
        del holder[key]
    elif way == 1:
        other, there = draw.choice(places)
        holder[key] = copy.deepcopy(other[there])
    elif way == 2 and isinstance(holder[key], int) and not isinstance(holder[key], bool):
        holder[key] += draw.choice((1, -1, 2, -2, 8))
    elif way == 3 and isinstance(holder[key], list) and holder[key]:
        holder[key].append(copy.deepcopy(draw.choice(holder[key])))
    elif way == 4 and isinstance(holder, dict):
        holder[draw.choice(WORDS)] = holder.pop(key)
    else:
        holder[key] = _value(draw)
    _write(file, found)
    return f"{file.name}: {key} was {old}"


def _calls(nodes: Json) -> list[Json]:
    return [row for row in nodes if row["op"] == "call_function"]


def _change_node(folder: Path, manifest: str, draw: random.Random) -> str:
    """One call becomes one of another operator, or one of its arguments another."""
    graph = _read(folder / "graph.json")
    row = draw.choice(_calls(graph["nodes"]))
    way = draw.randrange(6)
    if way == 0:
        row["target"] = draw.choice(STORED)
        row.pop("val", None)
    elif way == 1:
        row.pop("val", None)
        row["args"] = [_argument(draw, str(kind), graph["nodes"], row) for kind in _types(row["target"])]
    elif way == 2:
        first, second = draw.sample(range(len(graph["nodes"])), 2)
        nodes = graph["nodes"]
        nodes[first], nodes[second] = nodes[second], nodes[first]
    elif way == 3:
        row["val"] = copy.deepcopy(draw.choice(_calls(graph["nodes"])).get("val", ["float32", [1 << 20, 1 << 20]]))
    else:
        if way == 4:
            row.pop("val", None)
        places = list(_places([row["args"], row.get("kwargs", {})]))
        holder, key = draw.choice(places)
        holder[key] = draw.choice([_value(draw), {"node": draw.choice(graph["nodes"])["name"]}])
    _write(folder / "graph.json", graph)
    return f"node {row['name']}: {row['target']}, {way}"


def _types(name: str) -> list[Any]:
    target = resolve(TABLE[name])
    if not isinstance(target, torch._ops.OpOverload):
        return ["number", "number"]
    return [each.real_type for each in target._schema.arguments if not each.kwarg_only]


def _argument(draw: random.Random, kind: str, nodes: Json, before: Json) -> Json:
    """Some value of a type of schemas."""
    earlier = nodes[: nodes.index(before)] if before in nodes else nodes
    if kind.startswith("Optional["):
        return None if draw.random() < 0.5 else _argument(draw, kind[9:-1], nodes, before)
    if kind.startswith("List["):
        return [_argument(draw, kind[5:-1], nodes, before) for _ in range(draw.choice((0, 1, 2, 2, 2, 3, 4)))]
    if kind == "Tensor":
        return {"node": draw.choice(earlier)["name"]}
    if kind in ("int", "number"):
        sizes = [{"node": row["name"]} for row in earlier if "sym_size" in str(row["target"])]
        return draw.choice([draw.randrange(-2, 6), draw.randrange(-2, 6), draw.choice(INTEGERS), *sizes[:1]])
    return {
        "float": lambda: draw.choice(FLOATS),
        "bool": lambda: draw.random() < 0.5,
        "str": lambda: draw.choice(
            ("same", "valid", "constant", "reflect", "replicate", "floor", "trunc", "none", "ij,jk->ik")
        ),
        "ScalarType": lambda: {"dtype": draw.choice(DTYPES[:10])},
        "Device": lambda: {"device": "cpu"},
        "Layout": lambda: {"layout": "strided"},
        "MemoryFormat": lambda: {"memory_format": "contiguous_format"},
    }.get(kind, lambda: None)()


def _insert_node(folder: Path, manifest: str, draw: random.Random) -> str:
    """A call of any operator between a node and one of its readers."""
    graph = _read(folder / "graph.json")
    nodes = graph["nodes"]
    reader = draw.choice(nodes[2:])
    places = [(holder, key) for holder, key in _places(reader["args"]) if isinstance(holder, dict) and key == "node"]
    target = draw.choice(STORED)
    made = {"name": f"made{len(nodes)}", "op": "call_function", "target": target, "args": []}
    made["args"] = [_argument(draw, str(kind), nodes, reader) for kind in _types(target)]
    if places and draw.random() < 0.8:
        holder, key = draw.choice(places)
        if made["args"] and isinstance(made["args"][0], dict):
            made["args"][0] = {"node": holder[key]}
        holder[key] = made["name"]
        for row in nodes[nodes.index(reader) :]:
            row.pop("val", None)  # what comes after may have another shape
    nodes.insert(nodes.index(reader), made)
    _write(folder / "graph.json", graph)
    return f"{target} before {reader['name']}"


def _change_tensor(folder: Path, manifest: str, draw: random.Random) -> str:
    """One stored tensor gets other values, another shape or type, another name, or goes."""
    file = next(folder.glob("*.safetensors"))
    tensors = load_file(file)
    name = draw.choice(sorted(tensors))
    tensor = tensors.pop(name)
    way = draw.randrange(6)
    if way == 0:
        tensors[name] = tensor.to(getattr(torch, draw.choice(DTYPES[:10])))
    elif way == 1:
        tensors[name] = torch.cat([tensor.flatten(), tensor.flatten()[: draw.randrange(3)]]).contiguous()
    elif way == 2:
        tensors[name] = tensor.flatten()[: draw.randrange(4)].clone()
    elif way == 3:
        values = tensor.clone().flatten()
        hostile = (
            draw.choice((float("nan"), float("inf"), -1e30, 0.0))
            if tensor.is_floating_point()
            else draw.choice((-1, 255, 1 << 40))
        )
        values[draw.randrange(len(values))] = torch.tensor(hostile).to(tensor.dtype)
        tensors[name] = values.reshape(tensor.shape)
    elif way == 4:
        tensors[draw.choice((*WORDS[:9], *sorted(tensors)))] = tensor
    save_file(tensors, file, metadata={"format": "qdiff_fx"})
    return f"tensor {name}, {way}"


def _change_bytes(folder: Path, manifest: str, draw: random.Random) -> str:
    """Some bytes of a file become others, go, or are doubled."""
    file = draw.choice(sorted(folder.iterdir()))
    content = bytearray(file.read_bytes())
    place = min(draw.randrange(len(content)), draw.choice((8, 64, len(content)))) if content else 0
    way = draw.randrange(4)
    if way == 0:
        content[place] ^= 1 << draw.randrange(8)
    elif way == 1:
        del content[place : place + draw.choice((1, 4, 1000))]
    elif way == 2:
        content[place:place] = content[place : place + draw.choice((1, 4, 1000))]
    else:
        content[place : place + 8] = draw.randbytes(8)
    file.write_bytes(content)
    return f"bytes of {file.name} at {place}"


def _change_file(folder: Path, manifest: str, draw: random.Random) -> str:
    """One file is something else."""
    file = draw.choice(sorted(folder.iterdir()))
    file.unlink()
    way = draw.choice(("nothing", "folder", "pipe", "device", "loop"))
    if way == "folder":
        file.mkdir()
    elif way == "pipe":
        os.mkfifo(file)
    elif way != "nothing":
        file.symlink_to("/dev/zero" if way == "device" else file)
    return f"{file.name} is {way}"
