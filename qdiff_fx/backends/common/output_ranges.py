"""The ranges of layer outputs, which backends need whose kernels quantize what they return."""

from __future__ import annotations

from torch import fx

from qdiff_fx.errors import BackendError
from qdiff_fx.ir.facts import layer_info, quantized_layers


def require_output_ranges(gm: fx.GraphModule, where: str) -> None:
    """Raise BackendError where a q/dq graph has quantized weight layers and the range of no output was measured.

    Args:
        gm: the q/dq graph.
        where: what needs them, as an error says it.
    """
    infos = [layer_info(node) for node in quantized_layers(gm)]
    layers = [info for info in infos if info.quantized and info.kind != "attention"]
    if layers and all(info.output is None for info in layers):
        raise BackendError(
            "it quantizes layer outputs, whose ranges were not measured",
            where=where,
            fix='Calibrate what prepare_qdiff(model, config, example_inputs, backend="x86") returns, '
            "or with output_quantizers=True for the reference",
        )
