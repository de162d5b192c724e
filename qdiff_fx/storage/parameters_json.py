"""A store of parameters as JSON and tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from qdiff_fx.quant.parameters import ActivationParameters, OutputParameters, ParameterStore, WeightParameters
from qdiff_fx.quant.qparams import QParams


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


def parameters_from_json(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ParameterStore:
    """The store that `parameters_to_json` described.

    Raises:
        KeyError, TypeError, ValueError, ConversionError: the description or a tensor is none.
    """
    weights = {
        layer: WeightParameters(
            tensors[f"{each['tensors']}.codes"],
            tensors[f"{each['tensors']}.scales"],
            int(each["bits"]),
            int(each["axis"]),
            tensors.get(f"{each['tensors']}.bias"),
        )
        for layer, each in data["weights"].items()
    }
    rounding = data["weight_rounding"]
    if rounding not in ("nearest", "second_order"):
        raise ValueError(f"weights cannot be rounded {rounding!r}")
    activations = {name: ActivationParameters.from_json(each) for name, each in data["activations"].items()}
    inputs = {layer: {int(index): str(name) for index, name in reads} for layer, reads in data["inputs"].items()}
    unknown = {name for reads in inputs.values() for name in reads.values()} - set(activations)
    if unknown:
        raise ValueError(f"layers read the activation {min(unknown)!r}, which is not there")
    outputs = {layer: OutputParameters(QParams.from_json(each)) for layer, each in data["outputs"].items()}
    return ParameterStore(weights, activations, inputs, outputs, rounding)
