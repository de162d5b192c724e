"""How far what each layer of a quantized network returns is from what the float network's layer does."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from qdiff_fx.evaluation.fidelity import sqnr_db
from qdiff_fx.ir.facts import layer_info, quantized_layers, whole_layer
from qdiff_fx.networks import QuantizedUNet


@torch.no_grad()
def layer_sqnr(quantized: QuantizedUNet, unet: nn.Module, inputs: Mapping[str, Any]) -> dict[str, float]:
    """Layer → SQNR of its output in dB, both networks being given the same inputs.

    The error is all that has come up to there: the layer's own and those before it. Layers of the float network that
    are called more than once, or as functions, are left out.

    Args:
        quantized: its q/dq graph is run, whatever it was lowered to.
        inputs: a call's arguments by name.
    """
    graph = quantized.graph_module
    found = _Layers(graph)
    with _watched(unet, {whole_layer(name) for name in found.names.values()}) as expected:
        unet(**inputs)
    found.run(*quantized.signature.bind((), inputs).tensors)
    return {
        name: sqnr_db(expected[name].float(), actual.float())
        for name, actual in found.outputs.items()
        if name in expected and expected[name].shape == actual.shape
    }


class _Layers(fx.Interpreter):
    """Runs a q/dq graph, and adds up what the parts of each layer return."""

    def __init__(self, graph: fx.GraphModule):
        super().__init__(graph)
        self.names = {node: layer_info(node).path for node in quantized_layers(graph)}
        self.outputs: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self.names and isinstance(result, Tensor):
            name = whole_layer(self.names[n])
            self.outputs[name] = self.outputs[name] + result if name in self.outputs else result
        return result


@contextmanager
def _watched(unet: nn.Module, names: set[str]) -> Iterator[dict[str, Tensor]]:
    """What the modules of these names return, each that is called once."""
    seen: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()
    handles = []

    def hook(name: str) -> Any:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            calls[name] += 1
            seen.pop(name, None)
            if calls[name] == 1 and isinstance(output, Tensor):
                seen[name] = output.detach().clone()

        return keep

    for name, module in unet.named_modules():
        if name in names:
            handles.append(module.register_forward_hook(hook(name)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def mean_over_steps(steps: list[dict[str, float]]) -> dict[str, float]:
    """Layer → the mean of its decibels over several steps."""
    gathered: dict[str, list[float]] = defaultdict(list)
    for step in steps:
        for name, value in step.items():
            gathered[name].append(value)
    return {name: sum(values) / len(values) for name, values in gathered.items()}
