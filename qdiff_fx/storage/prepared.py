"""Save and load a prepared network: float weights, observers and what they saw, and what was decided."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from qdiff_fx.atomic import current, replacing_folder
from qdiff_fx.config import QDiffConfig
from qdiff_fx.errors import ArtifactError
from qdiff_fx.ir.annotations import fact, nodes_with, put, value
from qdiff_fx.ir.arguments import operand
from qdiff_fx.ir.edit import get_attr_tensor
from qdiff_fx.ir.facts import LayerPlan, Observed, Part, layer_id
from qdiff_fx.ir.properties import properties, set_properties, set_split_policy
from qdiff_fx.observers import Observer, observer_types
from qdiff_fx.observers.base import MAX_HISTOGRAM_BINS
from qdiff_fx.observers.statistics import SMALLEST_EXPONENT, Statistics
from qdiff_fx.passes.framework import Change, PassReport, Refusal
from qdiff_fx.passes.quantize.annotate import Annotate
from qdiff_fx.quant.parameters import ParameterStore
from qdiff_fx.signature import CallSignature
from qdiff_fx.storage.checked_config import MOST_BINS, MOST_TIMESTEPS, config_from_json
from qdiff_fx.storage.checked_graph import check_graph
from qdiff_fx.storage.checked_signature import signature_from_json
from qdiff_fx.storage.fields import Fields
from qdiff_fx.storage.graph_json import graph_to_json
from qdiff_fx.storage.graph_reading import add_stored, check_path, graph_from_json
from qdiff_fx.storage.parameters_json import parameters_from_json, parameters_to_json
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
MANIFEST, GRAPH, TENSORS = "prepared.json", "graph.json", "prepared.safetensors"
KIND = FolderKind("prepared network", "save_prepared", FORMAT_VERSION, MANIFEST, (GRAPH, TENSORS))
WEIGHT, OBSERVER = "weight:", "observer:"
LARGEST_EXPONENT = 128  # of a bin of a histogram of float32
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
        ArtifactError: the folder holds something else, the disk is full, an observer is of a kind of your own, or what
            would be written would not load.
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
    graph = json_text(
        {
            "nodes": graph_to_json(gm.graph),
            "observers": {path: _observer_to_json(path, observer) for path, observer in observers.items()},
            "split_of": {node.name: part.split_of for node in gm.graph.nodes if (part := fact(node, Part))},
            "observed": {node.name: each.output_observer for node in gm.graph.nodes if (each := fact(node, Observed))},
            "decided": decided,
        }
    )
    manifest = {
        "format_version": FORMAT_VERSION,
        "torch_version": torch.__version__,
        "config": artifact.config.to_json(),
        "signature": artifact.signature.to_json(),
        "properties": sorted(properties(gm)),
        "reports": [asdict(report) for report in artifact.reports],
    }
    with will_load(KIND):
        manifest_read = Fields(parse_json(manifest_text(manifest), MANIFEST), MANIFEST)
        config_from_json(manifest_read.get("config"))
        _graph_and_signature(manifest_read, Fields(parse_json(graph, GRAPH), GRAPH), stored, observers)
    with replacing_folder(target, expected_bytes=sum(tensor.nbytes for tensor in stored.values())) as staging:
        save_file(stored, staging / TENSORS, metadata={"format": "qdiff_fx"})
        (staging / GRAPH).write_text(graph)
        seal(staging, KIND, manifest)
    return target


def load_prepared_artifact(folder: str | os.PathLike[str]) -> PreparedArtifact:
    """Read a folder ``save_prepared_artifact`` wrote. Nothing in it is executed; every byte is checked.

    Raises:
        ArtifactError: the folder is missing, incomplete, damaged, or of a newer version.
    """
    path = current(folder)
    with reading(path):
        manifest = Fields(read_manifest(path, KIND), MANIFEST)
        data, tensors = Fields(read_json(path / GRAPH), GRAPH), dict(read_tensors(path / TENSORS))
        config = config_from_json(manifest.get("config"))
        observers = _observers_from(data.object("observers"), tensors)
        for observer in observers.values():
            observer.schedule = replace(observer.schedule, span=config.timestep_range)
        gm, signature = _graph_and_signature(manifest, data, tensors, observers)
        from qdiff_fx.storage.symbolic import open_sizes  # brings all of sympy

        open_sizes(gm, signature.inputs)
        Annotate(config).run(gm)
        set_properties(gm, STAGES.intersection(map(str, manifest.items("properties"))))
        set_split_policy(gm, config.split)
        decided = parameters_from_json(data.object("decided"), tensors)
        _check_decided(gm, decided)
        reports = tuple(map(_report_from_json, manifest.objects("reports")))
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


def _observer_from(path: str, data: Fields, tensors: Mapping[str, Tensor]) -> Observer:
    prefix = f"{OBSERVER}{path}:"
    state = {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}
    counts = [data.whole("timestep_bins", 1, MOST_BINS), data.whole("num_train_timesteps", 1, MOST_TIMESTEPS)]
    histogram_bins = data.whole("histogram_bins", 0, MAX_HISTOGRAM_BINS)
    # Before anything of that size is made.
    if "hist" not in state or list(state["hist"].shape) != [counts[0], histogram_bins]:
        raise ArtifactError(f"it holds no {counts[0]} histograms of {histogram_bins} bins", where=path)
    make: Any = observer_types()[data.choice("kind", observer_types().keys())]
    bins = {"histogram_bins": histogram_bins} if histogram_bins else {}
    observer: Observer = make(*counts, name=data.text("name"), **bins)
    for name, buffer in observer.named_buffers():
        found = state.get(name)
        if found is None or (found.dtype, found.shape) != (buffer.dtype, buffer.shape):
            raise ArtifactError(f"{name} is not {buffer.dtype} {list(buffer.shape)}", where=path)
    observer.load_state_dict(state)
    if not _is_sound(observer.statistics()):
        raise ArtifactError("its record is none: counts below nothing, or no numbers", where=path)
    return observer


def _is_sound(stats: Statistics) -> bool:
    """Whether data can have left this record."""
    low, high = stats.min_val[stats.seen], stats.max_val[stats.seen]
    exponents = (stats.exponent >= SMALLEST_EXPONENT) & (stats.exponent <= LARGEST_EXPONENT)
    counted = bool((stats.count >= 0).all()) and bool((stats.hist >= 0).all())
    return counted and bool(exponents.all()) and bool((low.isfinite() & high.isfinite() & (low <= high)).all())


def _observers_from(data: Fields, tensors: Mapping[str, Tensor]) -> dict[str, Observer]:
    found = {}
    for path in data.data:
        check_path(path)
        found[path] = _observer_from(path, data.object(path), tensors)
    return found


def _graph_and_signature(
    manifest: Fields, data: Fields, tensors: Mapping[str, Tensor], observers: Mapping[str, Observer]
) -> tuple[fx.GraphModule, CallSignature]:
    """The graph that calls these observers, all of it checked but what they hold and what was decided."""
    signature, mode = signature_from_json(manifest.get("signature")), FakeTensorMode()
    gm = _graph_from(data, tensors, observers, mode)
    check_graph(gm, signature, mode)
    return gm, signature


def _graph_from(
    data: Fields, tensors: Mapping[str, Tensor], observers: Mapping[str, Observer], mode: FakeTensorMode
) -> fx.GraphModule:
    root = fx.GraphModule(nn.Module(), fx.Graph())
    for name, tensor in tensors.items():
        if name.startswith(WEIGHT):
            add_stored(root, name.removeprefix(WEIGHT), tensor)
    for path, observer in observers.items():
        check_path(path)
        root.add_submodule(path, observer)
    graph = graph_from_json(data.get("nodes"), observers.keys(), mode)
    split_of, observed = data.object("split_of"), data.object("observed")
    for node in graph.nodes:
        part = fact(node, Part)
        if part:
            put(node, Part(part.channels, split_of.text(node.name)))
        if node.name in observed:
            put(node, Observed(observed.text(node.name)))
    return fx.GraphModule(root, graph)


def _check_decided(gm: fx.GraphModule, decided: ParameterStore) -> None:
    """Raises ArtifactError for parameters of a layer that is not there, or that do not fit its weight."""
    layers = {layer_id(node): node for node in nodes_with(gm, LayerPlan)}
    unknown = sorted({*decided.weights, *decided.inputs, *decided.outputs} - set(layers))
    if unknown:
        raise ArtifactError(f"it has parameters of {unknown[0]!r}, which is no layer", where=GRAPH)
    for name, weight in decided.weights.items():
        expected = value(operand(layers[name], 1)).shape
        if weight.codes.shape != expected:
            raise ArtifactError(f"its codes are {list(weight.codes.shape)}, not {list(expected)}", where=name)


def _report_from_json(data: Fields) -> PassReport:
    changed = tuple(Change(**_texts(each, Change)) for each in data.objects("changed"))
    return PassReport(
        data.text("name"), changed, tuple(Refusal(**_texts(each, Refusal)) for each in data.objects("refused"))
    )


def _texts(data: Fields, kind: type[Change] | type[Refusal]) -> dict[str, str]:
    return {each.name: data.text(each.name) for each in fields(kind)}
