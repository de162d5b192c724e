"""Save and load a quantized network: one folder of safetensors and JSON, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from qdiff_fx.atomic import current, replacing_folder
from qdiff_fx.config import QDiffConfig
from qdiff_fx.errors import ArtifactError, printable
from qdiff_fx.ir.annotations import fact, put, value_or_none
from qdiff_fx.ir.edit import get_attr_tensor
from qdiff_fx.ir.facts import WeightCodes
from qdiff_fx.ir.properties import set_properties
from qdiff_fx.quant.packing import check_packed, pack_codes, unpack_codes
from qdiff_fx.schedule import Schedule
from qdiff_fx.signature import CallSignature
from qdiff_fx.storage.checked_arguments import LARGEST
from qdiff_fx.storage.checked_config import config_from_json
from qdiff_fx.storage.checked_graph import check_graph
from qdiff_fx.storage.checked_schedule import schedule_from_json
from qdiff_fx.storage.checked_signature import signature_from_json
from qdiff_fx.storage.fields import Fields, is_whole, shown
from qdiff_fx.storage.graph_json import graph_to_json
from qdiff_fx.storage.graph_reading import add_stored, graph_from_json
from qdiff_fx.storage.sealed import (
    FolderKind,
    check_replaceable,
    manifest_text,
    read_manifest,
    read_tensors,
    reading,
    seal,
    unshared,
    will_load,
)
from qdiff_fx.storage.strict_json import json_text, parse_json, read_json

FORMAT_VERSION = 1
MANIFEST, GRAPH, WEIGHTS = "qdiff.json", "graph.json", "weights.safetensors"
KIND = FolderKind("network", "save_qdiff", FORMAT_VERSION, MANIFEST, (GRAPH, WEIGHTS))


@dataclass(frozen=True)
class Artifact:
    """What a saved folder holds: the q/dq graph, how it is called, and how it came to be.

    Attributes:
        source: where the float network came from; may be empty.
        schedule: the steps it was calibrated along, where these are not a sampler's own.
        digest: what tells the folder it was read from apart from every other; empty where it was not read.
    """

    graph_module: fx.GraphModule
    signature: CallSignature
    config: QDiffConfig
    source: str = ""
    schedule: Schedule | None = None
    digest: str = ""


def save_artifact(artifact: Artifact, folder: str | os.PathLike[str]) -> Path:
    """Write ``folder``; codes below 8 bits are packed densely.

    An existing artifact there is replaced, and only once the new one is complete; so is an empty folder.

    Raises:
        ArtifactError: the folder holds something else, the disk is full, the graph cannot be saved, or what would be
            written would not load.
    """
    target = Path(folder)
    check_replaceable(target, KIND)
    tensors, packed = _pack(artifact.graph_module)
    graph = json_text({"nodes": graph_to_json(artifact.graph_module.graph), "packed": packed})
    manifest = {
        "format_version": FORMAT_VERSION,
        "torch_version": torch.__version__,
        "config": artifact.config.to_json(),
        "signature": artifact.signature.to_json(),
        "source": printable(artifact.source),
    }
    if artifact.schedule is not None:
        manifest["schedule"] = artifact.schedule.to_json()
    with will_load(KIND):
        manifest_read = Fields(parse_json(manifest_text(manifest), MANIFEST), MANIFEST)
        _described(manifest_read, Fields(parse_json(graph, GRAPH), GRAPH), tensors, keep_packed=True)
    with replacing_folder(target, expected_bytes=sum(tensor.nbytes for tensor in tensors.values())) as staging:
        save_file(tensors, staging / WEIGHTS, metadata={"format": "qdiff_fx"})
        (staging / GRAPH).write_text(graph)
        seal(staging, KIND, manifest)
    return target


def load_artifact(folder: str | os.PathLike[str], *, keep_packed: bool = False) -> Artifact:
    """Read a folder ``save_artifact`` wrote. Nothing in it is executed; every byte is checked.

    Args:
        folder: the folder.
        keep_packed: leave codes below 8 bits packed in memory; the ``WeightCodes`` of whoever reads them then
            hold their bits and shape. Only some backends take such a graph.

    Raises:
        ArtifactError: the folder is missing, incomplete, damaged, or of a newer version.
    """
    path = current(folder)
    with reading(path):
        manifest = Fields(read_manifest(path, KIND), MANIFEST)
        graph, tensors = Fields(read_json(path / GRAPH), GRAPH), dict(read_tensors(path / WEIGHTS))
        found = _described(manifest, graph, tensors, keep_packed=keep_packed)
        return replace(found, digest=manifest.text("manifest_sha256"))


def _described(manifest: Fields, graph: Fields, tensors: Mapping[str, torch.Tensor], *, keep_packed: bool) -> Artifact:
    """What the contents of a folder stand for, everything checked."""
    config = config_from_json(manifest.get("config"))
    signature = signature_from_json(manifest.get("signature"))
    module = _read_graph(graph, tensors, signature, keep_packed)
    schedule = schedule_from_json(manifest.get("schedule"), manifest.where) if "schedule" in manifest else None
    return Artifact(module, signature, config, printable(str(manifest.get("source"))), schedule)


def read_again(folder: Path, digest: str) -> Artifact:
    """The artifact of that digest from the folder it was read from before.

    Raises:
        ArtifactError: the folder is gone, or holds another network by now.
    """
    try:
        artifact = load_artifact(folder)
    except ArtifactError as error:
        error.add_note("The network in memory was loaded from there and needs it again for this.")
        raise
    if artifact.digest != digest:
        raise ArtifactError(
            "it holds another network than the one that was loaded from it",
            where=str(folder),
            fix="Load it again, or put the folder back that was loaded",
        )
    return artifact


def artifact_bytes(folder: str | os.PathLike[str]) -> int:
    """Size of a saved folder in bytes."""
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def _pack(gm: fx.GraphModule) -> tuple[dict[str, torch.Tensor], dict[str, list[Any]]]:
    """The tensors to store, and for the packed ones their bits and shape."""
    tensors: dict[str, torch.Tensor] = {}
    packed: dict[str, list[Any]] = {}
    for node in gm.graph.nodes:
        name = str(node.target)
        if node.op != "get_attr" or name in tensors:
            continue
        tensor = get_attr_tensor(gm, node).detach().cpu()
        known = fact(node, WeightCodes)
        bits = known.bits if known else 8
        if bits < 8:
            packed[name] = [bits, list(tensor.shape)]
            tensor = pack_codes(tensor, bits)
        tensors[name] = tensor.contiguous()
    return unshared(tensors), packed


def _read_graph(
    graph: Fields, tensors: Mapping[str, torch.Tensor], signature: CallSignature, keep_packed: bool
) -> fx.GraphModule:
    mode = FakeTensorMode()
    packed = _packed_from(graph.object("packed"), tensors)
    root = fx.GraphModule(nn.Module(), fx.Graph())
    for name, tensor in tensors.items():
        unpacked = name in packed and not keep_packed
        add_stored(root, name, unpack_codes(tensor, *packed[name]) if unpacked else tensor)
    nodes = graph_from_json(graph.get("nodes"), mode=mode)
    for node in nodes.find_nodes(op="get_attr"):
        _check_bits(node, packed)
        if keep_packed and node.target in packed:
            put(node, WeightCodes(*packed[str(node.target)]))
        else:
            _check_tensor(root, node, set(tensors))
    module = fx.GraphModule(root, nodes)
    check_graph(module, signature, mode)
    set_properties(module, {"quantized"})
    return module


def _packed_from(fields: Fields, tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Bits and shape of the packed codes, by the names of the tensors that hold them."""
    packed: dict[str, tuple[int, tuple[int, ...]]] = {}
    for name in fields.data:
        items = fields.items(name)
        if name not in tensors or len(items) != 2:
            raise ArtifactError(f"{shown(name)} is not a tensor with its bits and shape", where=fields.where)
        bits, shape = items
        if (
            not is_whole(bits, 2, 8)
            or not isinstance(shape, list)
            or not all(is_whole(each, 0, LARGEST) for each in shape)
        ):
            raise ArtifactError(f"{shown(name)} has bits or a shape that are none", where=fields.where)
        check_packed(tensors[name], bits, shape)
        packed[name] = (bits, tuple(shape))
    return packed


def _check_bits(node: fx.Node, packed: Mapping[str, tuple[int, tuple[int, ...]]]) -> None:
    """Codes of fewer than 8 bits are packed, in as many: so none lies outside them."""
    codes = fact(node, WeightCodes)
    said, stored = (codes.bits if codes else 8), packed.get(str(node.target), (8, ()))[0]
    if said != stored:
        raise ArtifactError(f"its codes have {said} bits, stored are {stored}", where=f"{GRAPH}, node {node.name}")


def _check_tensor(root: fx.GraphModule, node: fx.Node, stored: set[str]) -> None:
    """Raises ArtifactError for a tensor the graph reads that is missing, or is not of the kind the graph expects."""
    if node.target not in stored:
        raise ArtifactError(f"tensor {node.target!r} is missing", where=WEIGHTS, fix="Save the network again")
    expected, found = value_or_none(node), get_attr_tensor(root, node)
    if expected is not None and (expected.dtype, expected.shape) != (found.dtype, found.shape):
        raise ArtifactError(
            f"tensor {node.target!r} is {found.dtype} {list(found.shape)}, "
            f"the graph expects {expected.dtype} {list(expected.shape)}",
            where=WEIGHTS,
            fix="Save the network again",
        )
