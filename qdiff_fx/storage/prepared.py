"""Save and load a prepared network: float weights, observers and what they saw, and what was decided."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from qdiff_fx.atomic import current, replacing_folder
from qdiff_fx.config import QDiffConfig
from qdiff_fx.errors import ArtifactError
from qdiff_fx.ir.annotations import fact, nodes_with, put
from qdiff_fx.ir.arguments import operand
from qdiff_fx.ir.edit import add_buffer, get_attr_tensor
from qdiff_fx.ir.facts import LayerPlan, Observed, Part, layer_id
from qdiff_fx.ir.properties import properties, set_properties, set_split_policy
from qdiff_fx.observers import Observer, observer_types
from qdiff_fx.passes.framework import Change, PassReport, Refusal
from qdiff_fx.passes.quantize.annotate import Annotate
from qdiff_fx.quant.parameters import ParameterStore
from qdiff_fx.signature import CallSignature
from qdiff_fx.storage.graph_json import graph_from_json, graph_to_json
from qdiff_fx.storage.parameters_json import parameters_from_json, parameters_to_json
from qdiff_fx.storage.sealed import FolderKind, check_replaceable, read_manifest, read_tensors, reading, seal, unshared

FORMAT_VERSION = 1
MANIFEST, GRAPH, TENSORS = "prepared.json", "graph.json", "prepared.safetensors"
KIND = FolderKind("prepared network", "save_prepared", FORMAT_VERSION, MANIFEST, (GRAPH, TENSORS))
WEIGHT, OBSERVER = "weight:", "observer:"
STAGES = frozenset({"canonical", "split", "annotated", "observed"})


@dataclass(frozen=True)
class PreparedArtifact:
    """What a saved folder holds: the observed graph, how it is called and configured, and what is known so far."""

    graph_module: fx.GraphModule
    signature: CallSignature
    config: QDiffConfig
    reports: tuple[PassReport, ...]
    decided: ParameterStore


def save_prepared_artifact(artifact: PreparedArtifact, folder: str | os.PathLike[str]) -> Path:
    """Write ``folder``; a prepared network that is there is replaced, and only once the new one is complete.

    Raises:
        ArtifactError: the folder holds something else, the disk is full, or an observer is of a kind of your own.
    """
    target, gm = Path(folder), artifact.graph_module
    check_replaceable(target, KIND)
    observers = _observers_of(gm)
    decided, tensors = parameters_to_json(artifact.decided)
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            tensors[f"{WEIGHT}{node.target}"] = get_attr_tensor(gm, node)
    for path, observer in observers.items():
        tensors |= {f"{OBSERVER}{path}:{name}": buffer for name, buffer in observer.named_buffers()}
    stored = unshared({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    graph = {
        "nodes": graph_to_json(gm.graph),
        "observers": {path: _observer_to_json(path, observer) for path, observer in observers.items()},
        "split_of": {node.name: part.split_of for node in gm.graph.nodes if (part := fact(node, Part))},
        "observed": {node.name: each.output_observer for node in gm.graph.nodes if (each := fact(node, Observed))},
        "decided": decided,
    }
    with replacing_folder(target, expected_bytes=sum(tensor.nbytes for tensor in stored.values())) as staging:
        save_file(stored, staging / TENSORS, metadata={"format": "qdiff_fx"})
        (staging / GRAPH).write_text(json.dumps(graph, separators=(",", ":")))
        manifest = {
            "format_version": FORMAT_VERSION,
            "torch_version": torch.__version__,
            "config": artifact.config.to_json(),
            "signature": artifact.signature.to_json(),
            "properties": sorted(properties(gm)),
            "reports": [asdict(report) for report in artifact.reports],
        }
        seal(staging, KIND, manifest)
    return target


def load_prepared_artifact(folder: str | os.PathLike[str]) -> PreparedArtifact:
    """Read a folder ``save_prepared_artifact`` wrote. Nothing in it is executed; every byte is checked.

    Raises:
        ArtifactError: the folder is missing, incomplete, damaged, or of a newer version.
    """
    path = current(folder)
    with reading(path):
        manifest = read_manifest(path, KIND)
        config = QDiffConfig.from_json(manifest["config"])
        signature = CallSignature.from_json(manifest["signature"])
        data, tensors = json.loads((path / GRAPH).read_text()), dict(read_tensors(path / TENSORS))
        gm = _graph_from(data, tensors)
        for observer in _observers_of(gm).values():
            observer.schedule = replace(observer.schedule, span=config.timestep_range)
        from qdiff_fx.storage.symbolic import open_sizes  # brings all of sympy

        open_sizes(gm, signature.inputs)
        Annotate(config).run(gm)
        set_properties(gm, set(manifest["properties"]) & STAGES)
        set_split_policy(gm, config.split)
        decided = parameters_from_json(data["decided"], tensors)
        _check_decided(gm, decided)
        reports = tuple(map(_report_from_json, manifest["reports"]))
        return PreparedArtifact(gm, signature, config, reports, decided)


def _observers_of(gm: fx.GraphModule) -> dict[str, Observer]:
    """The observers that nodes call, by their paths."""
    found: dict[str, Observer] = {}
    for node in gm.graph.nodes:
        if node.op == "call_module":
            observer = gm.get_submodule(str(node.target))
            if not isinstance(observer, Observer):
                raise ArtifactError(f"it is a {type(observer).__name__}, not an observer", where=str(node.target))
            found[str(node.target)] = observer
    return found


def _observer_to_json(path: str, observer: Observer) -> dict[str, Any]:
    if observer_types().get(observer.kind) is not type(observer):
        raise ArtifactError(
            f"an observer of the class {type(observer).__name__} cannot be saved",
            where=path,
            fix="Give it a file in qdiff_fx/observers",
        )
    names = ("kind", "name", "timestep_bins", "num_train_timesteps", "histogram_bins")
    return {name: getattr(observer, name) for name in names}


def _observer_from(path: str, data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Observer:
    bins = {"histogram_bins": int(data["histogram_bins"])} if data["histogram_bins"] else {}
    make: Any = observer_types()[data["kind"]]
    observer: Observer = make(int(data["timestep_bins"]), int(data["num_train_timesteps"]), name=data["name"], **bins)
    prefix = f"{OBSERVER}{path}:"
    state = {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}
    for name, buffer in observer.named_buffers():
        if state[name].dtype != buffer.dtype:
            raise ArtifactError(f"{name} is {state[name].dtype}, not {buffer.dtype}", where=path)
    observer.load_state_dict(state)
    return observer


def _graph_from(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> fx.GraphModule:
    root = fx.GraphModule(nn.Module(), fx.Graph())
    for name, tensor in tensors.items():
        if name.startswith(WEIGHT):
            add_buffer(root, name.removeprefix(WEIGHT), tensor)
    for path, each in data["observers"].items():
        root.add_submodule(path, _observer_from(path, each, tensors))
    graph = graph_from_json(data["nodes"], data["observers"].keys())
    for node in graph.nodes:
        part = fact(node, Part)
        if part:
            put(node, Part(part.channels, str(data["split_of"][node.name])))
        if node.name in data["observed"]:
            put(node, Observed(str(data["observed"][node.name])))
    return fx.GraphModule(root, graph)


def _check_decided(gm: fx.GraphModule, decided: ParameterStore) -> None:
    """Raises ArtifactError for parameters of a layer that is not there, or that do not fit its weight."""
    layers = {layer_id(node): node for node in nodes_with(gm, LayerPlan)}
    unknown = sorted({*decided.weights, *decided.inputs, *decided.outputs} - set(layers))
    if unknown:
        raise ArtifactError(f"it has parameters of {unknown[0]!r}, which is no layer", where=GRAPH)
    for name, weight in decided.weights.items():
        expected = get_attr_tensor(gm, operand(layers[name], 1)).shape
        if weight.codes.shape != expected:
            raise ArtifactError(f"its codes are {list(weight.codes.shape)}, not {list(expected)}", where=name)


def _report_from_json(data: Mapping[str, Any]) -> PassReport:
    changed = tuple(Change(**each) for each in data["changed"])
    return PassReport(data["name"], changed, tuple(Refusal(**each) for each in data["refused"]))
