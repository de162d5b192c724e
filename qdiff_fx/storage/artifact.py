"""Save and load a quantized network: one folder of safetensors and JSON, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import fx, nn

from qdiff_fx.atomic import current, replacing_folder
from qdiff_fx.config import QDiffConfig
from qdiff_fx.errors import ArtifactError
from qdiff_fx.ir.annotations import fact, put, value_or_none
from qdiff_fx.ir.edit import add_buffer, get_attr_tensor
from qdiff_fx.ir.facts import WeightCodes
from qdiff_fx.ir.properties import set_properties
from qdiff_fx.quant.packing import check_packed, pack_codes, unpack_codes
from qdiff_fx.signature import CallSignature
from qdiff_fx.storage.graph_json import graph_from_json, graph_to_json

FORMAT_VERSION = 1
MAPPED_BYTES = 64 << 20
MANIFEST, GRAPH, WEIGHTS = "qdiff.json", "graph.json", "weights.safetensors"


@dataclass(frozen=True)
class Artifact:
    """What a saved folder holds: the q/dq graph, how it is called, and how it came to be.

    Attributes:
        source: where the float network came from; may be empty.
        digest: what tells the folder it was read from apart from every other; empty where it was not read.
    """

    graph_module: fx.GraphModule
    signature: CallSignature
    config: QDiffConfig
    source: str = ""
    digest: str = ""


def save_artifact(artifact: Artifact, folder: str | os.PathLike[str]) -> Path:
    """Write ``folder``; codes below 8 bits are packed densely.

    An existing artifact there is replaced, and only once the new one is complete; so is an empty folder.

    Raises:
        ArtifactError: the folder holds something else, the disk is full, or the graph cannot be saved.
    """
    target = Path(folder)
    _check_replaceable(target)
    tensors, packed = _pack(artifact.graph_module)
    graph = {"nodes": graph_to_json(artifact.graph_module.graph), "packed": packed}
    with replacing_folder(target, expected_bytes=sum(tensor.nbytes for tensor in tensors.values())) as staging:
        save_file(tensors, staging / WEIGHTS, metadata={"format": "qdiff_fx"})
        (staging / GRAPH).write_text(json.dumps(graph, separators=(",", ":")))
        manifest = {
            "format_version": FORMAT_VERSION,
            "torch_version": torch.__version__,
            "config": artifact.config.to_json(),
            "signature": artifact.signature.to_json(),
            "source": artifact.source,
            "sha256": {name: _digest(staging / name) for name in (GRAPH, WEIGHTS)},
        }
        manifest["manifest_sha256"] = _manifest_digest(manifest)
        (staging / MANIFEST).write_text(_manifest_text(manifest))
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
    with _reading(path):
        manifest = _read_manifest(path)
        for name in (GRAPH, WEIGHTS):
            _check_file(path, name, manifest["sha256"][name])
        module = _unpack(json.loads((path / GRAPH).read_text()), dict(_read_tensors(path / WEIGHTS)), keep_packed)
        signature = CallSignature.from_json(manifest["signature"])
        config = QDiffConfig.from_json(manifest["config"])
        return Artifact(module, signature, config, manifest["source"], manifest["manifest_sha256"])


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
    return sum(file.stat().st_size for file in Path(folder).iterdir())


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
    return _unshared(tensors), packed


def _unshared(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies where two names look into one storage, which safetensors refuses."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        address = tensor.untyped_storage().data_ptr()
        if address in seen or tensor.numel() != tensor.untyped_storage().nbytes() // tensor.element_size():
            tensors[name] = tensor.clone()
        seen.add(address)
    return tensors


def _read_tensors(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor, in memory of its own.

    The file is mapped anew now and then: pages that were read stay in memory for as long as their mapping.
    """
    with safe_open(file, framework="pt") as stored:
        names = list(stored.keys())
    while names:
        with safe_open(file, framework="pt") as stored:
            read = 0
            while names and read < MAPPED_BYTES:
                tensor = stored.get_tensor(names[-1]).clone()
                read += tensor.nbytes
                yield names.pop(), tensor


def _unpack(graph: dict[str, Any], tensors: dict[str, torch.Tensor], keep_packed: bool) -> fx.GraphModule:
    root = fx.GraphModule(nn.Module(), fx.Graph())
    packed = graph["packed"]
    for name, tensor in tensors.items():
        unpacked = name in packed and not keep_packed
        add_buffer(root, name, unpack_codes(tensor, *packed[name]) if unpacked else tensor)
    nodes = graph_from_json(graph["nodes"])
    for node in nodes.nodes:
        if node.op == "get_attr" and keep_packed and node.target in packed:
            bits, shape = packed[node.target]
            put(node, WeightCodes(bits, tuple(shape)))
            check_packed(tensors[node.target], bits, shape)
        elif node.op == "get_attr":
            _check_tensor(root, node, set(tensors))
    module = fx.GraphModule(root, nodes)
    set_properties(module, {"canonical", "quantized"})
    return module


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong with what is read is the folder's fault."""
    try:
        yield
    except ArtifactError:
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise ArtifactError(f"it cannot be read ({cause})", where=str(path), fix="Save the network again") from error


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


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    if not file.is_file():
        found = "is not a saved network: it has no qdiff.json" if path.is_dir() else "does not exist"
        raise ArtifactError(f"the folder {found}", where=str(path), fix="Give a folder written by save_qdiff")
    text = file.read_text()
    manifest = json.loads(text)
    version = manifest["format_version"]
    if version > FORMAT_VERSION:
        raise ArtifactError(
            f"it has format version {version}, this release reads up to {FORMAT_VERSION}",
            where=str(path),
            fix="Upgrade qdiff_fx",
        )
    # The text too, or a changed byte that means the same (1e-5, 1E-5) would pass.
    if manifest["manifest_sha256"] != _manifest_digest(manifest) or text != _manifest_text(manifest):
        raise ArtifactError("qdiff.json is damaged: its checksum differs", where=str(path), fix="Copy or save it again")
    return manifest


def _check_file(path: Path, name: str, digest: str) -> None:
    if not (path / name).is_file():
        raise ArtifactError(f"{name} is missing", where=str(path), fix="Save the network again")
    if _digest(path / name) != digest:
        raise ArtifactError(f"{name} is damaged: its checksum differs", where=str(path), fix="Copy or save it again")


def _manifest_text(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest, indent=1)


def _manifest_digest(manifest: dict[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_replaceable(target: Path) -> None:
    """Only an empty folder or a saved network is ever overwritten, and only one with nothing else beside it."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / MANIFEST).is_file():
        raise ArtifactError(
            "it exists and is not a saved network", where=str(target), fix="Choose another folder or remove it"
        )
    others = sorted({file.name for file in target.iterdir()} - {MANIFEST, GRAPH, WEIGHTS})
    if others:
        raise ArtifactError(
            f"it holds {others[0]!r} beside a saved network", where=str(target), fix="Choose another folder"
        )
