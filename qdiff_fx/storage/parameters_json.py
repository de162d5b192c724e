"""A store of parameters as JSON and tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from qdiff_fx.errors import ArtifactError
from qdiff_fx.quant.parameters import ActivationParameters, OutputParameters, ParameterStore, WeightParameters
from qdiff_fx.quant.qparams import WEIGHT_BITS
from qdiff_fx.storage.checked_qparams import qparams_from_json
from qdiff_fx.storage.fields import Fields, is_whole, shown


def parameters_to_json(store: ParameterStore) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description of a store, and its tensors by the names that the description gives them."""
    weights: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for number, (layer, weight) in enumerate(store.weights.items()):
        weights[layer] = {"tensors": f"decided.{number}", "bits": weight.bits, "axis": weight.axis}
        named = {"codes": weight.codes, "scales": weight.scales, "bias": weight.bias}
        tensors |= {f"decided.{number}.{name}": tensor for name, tensor in named.items() if tensor is not None}
    description = {
        "weights": weights,
        "activations": {name: each.to_json() for name, each in store.activations.items()},
        "inputs": {layer: sorted(reads.items()) for layer, reads in store.inputs.items()},
        "outputs": {layer: each.params.to_json() for layer, each in store.outputs.items()},
        "weight_rounding": store.weight_rounding,
    }
    return description, tensors


def parameters_from_json(data: Fields, tensors: Mapping[str, Tensor]) -> ParameterStore:
    """The store that `parameters_to_json` described.

    Raises:
        ArtifactError, ConversionError: the description or a tensor is none.
    """
    weights = {
        layer: _weight_from(data.object("weights").object(layer), tensors) for layer in data.object("weights").data
    }
    rounding = data.choice("weight_rounding", ("nearest", "second_order"))
    described = data.object("activations")
    activations = {name: _activation_from(described.object(name)) for name in described.data}
    reads = data.object("inputs")
    inputs = {layer: _inputs_from(reads, layer, activations) for layer in reads.data}
    measured = data.object("outputs")
    outputs = {layer: OutputParameters(qparams_from_json(measured.object(layer))) for layer in measured.data}
    return ParameterStore(
        weights, activations, inputs, outputs, "second_order" if rounding == "second_order" else "nearest"
    )


def _weight_from(data: Fields, tensors: Mapping[str, Tensor]) -> WeightParameters:
    prefix, bits = data.text("tensors"), data.whole("bits", WEIGHT_BITS[0], WEIGHT_BITS[-1])
    codes, scales = tensors.get(f"{prefix}.codes"), tensors.get(f"{prefix}.scales")
    if codes is None or scales is None:
        raise ArtifactError(f"the codes or scales of {prefix!r} are missing", where=data.where)
    return WeightParameters(codes, scales, bits, data.whole("axis", 0, 16), tensors.get(f"{prefix}.bias"))


def _activation_from(data: Fields, *, first: bool = True) -> ActivationParameters:
    residual = _activation_from(data.object("residual"), first=False) if first and "residual" in data else None
    params, static = qparams_from_json(data.object("params")), qparams_from_json(data.object("static"))
    return ActivationParameters(data.text("act_range"), params, static, residual)


def _inputs_from(data: Fields, layer: str, activations: Mapping[str, ActivationParameters]) -> dict[int, str]:
    found: dict[int, str] = {}
    for read in data.items(layer):
        if not isinstance(read, list) or len(read) != 2 or not is_whole(read[0], 0, 1 << 16):
            raise ArtifactError("it is not a list of arguments and activations", where=f"{data.where}.{layer}")
        if not isinstance(read[1], str) or read[1] not in activations:
            raise ArtifactError(f"it reads the activation {shown(read[1])}, which is not there", where=data.where)
        found[read[0]] = read[1]
    return found
