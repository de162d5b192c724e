"""Weights as the kernels read them; codes are freed as they are packed, where they may be."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import fx

from qdiff_fx.backends.common.base import DEQUANTIZE_WEIGHT, weight_codes, weight_of, weight_tensors
from qdiff_fx.backends.common.memory import trim
from qdiff_fx.backends.native.fusion.limits import WeightReach, input_parts
from qdiff_fx.backends.native.fusion.weight_forms import AsItIs, WeightForm
from qdiff_fx.ir import ops
from qdiff_fx.ir.annotations import put
from qdiff_fx.ir.arguments import operand
from qdiff_fx.ir.edit import add_buffer, get_attr_tensor
from qdiff_fx.ir.facts import layer_info, quantized_layers

qdiff = torch.ops.qdiff
AS_IT_IS = AsItIs()
TRIM_EVERY = 8 << 20  # bytes freed: packed weights would otherwise take new memory beside what freed ones leave


@dataclass(frozen=True)
class PackedInputs:
    """The weights of input channels `first` to `last`, as the kernels read them: names of the buffers that hold them.

    Attributes:
        reach: how large results they make.
    """

    first: int
    last: int
    packed: str
    sums: str
    reach: WeightReach


@dataclass(frozen=True)
class PackedWeight:
    """One weight as the kernels read it, whichever layers call for it.

    Attributes:
        parts: it, or parts of it whose sums fit 32 bits.
        scales: the name of the buffer of its scales, which holds some more than there are channels, as padding.
        channels: how many output channels there are.
        kernel: the weight's sizes beyond (out, in).
    """

    parts: tuple[PackedInputs, ...]
    scales: str
    channels: int
    kernel: tuple[int, ...]

    def arguments(self, graph: fx.Graph) -> dict[str, list[fx.Node]]:
        """The kernel's arguments, each a node of its own, made where the graph is being written."""
        weights = [graph.get_attr(part.packed) for part in self.parts]
        for weight, part in zip(weights, self.parts, strict=True):
            put(weight, part.reach)
        return {
            "weights": weights,
            "weight_scales": [graph.get_attr(self.scales) for _ in self.parts],
            "weight_sums": [graph.get_attr(part.sums) for part in self.parts],
        }


class WeightPacker:
    """Packs every weight once, for the first layer that asks.

    Args:
        gm: the graph the layers are in.
        release: free the codes of a weight once all its layers are lowered, unless somebody else reads them.
    """

    def __init__(self, gm: fx.GraphModule, *, release: bool):
        self._gm, self._release = gm, release
        self._readers = Counter(str(node.target) for node in gm.graph.nodes if node.op == "get_attr")
        weights = ((layer, weight_of(layer)) for layer in quantized_layers(gm))
        self._codes = {layer: operand(weight) for layer, weight in weights if weight is not None}
        # Both layers of a 16-bit input read the same codes through one node.
        self._waiting = Counter(str(codes.target) for codes in self._codes.values())
        self._packed: dict[tuple[str, int, WeightForm], PackedWeight] = {}
        self._untrimmed = 0

    def pack(self, layer: fx.Node, form: WeightForm = AS_IT_IS) -> PackedWeight:
        """The layer's weight in this form."""
        key = str(self._codes[layer].target), layer_info(layer).weight_bits, form
        if key not in self._packed:
            self._packed[key] = _pack(self._gm, layer, self._codes[layer], form)
        return self._packed[key]

    def done(self, layer: fx.Node) -> None:
        """The layer is about to be lowered: the codes may go if it is the last that waits for them."""
        codes = self._codes[layer]
        name = str(codes.target)
        self._waiting[name] -= 1
        if not self._release or self._readers[name] > 1 or self._waiting[name] or _read_elsewhere(codes, layer):
            return
        storage = get_attr_tensor(self._gm, codes).untyped_storage()
        self._untrimmed += storage.nbytes()
        storage.resize_(0)
        if self._untrimmed >= TRIM_EVERY:
            trim()
            self._untrimmed = 0


def _read_elsewhere(codes: fx.Node, layer: fx.Node) -> bool:
    """Whether anybody but the layer reads the codes, as they are or dequantized."""
    pending, seen = [codes], {layer}
    while pending:
        for user in pending.pop().users:
            if user not in seen and user.target is not DEQUANTIZE_WEIGHT and user.target not in ops.CASTS:
                return True
            if user not in seen:
                seen.add(user)
                pending.append(user)
    return False


def _pack(gm: fx.GraphModule, layer: fx.Node, codes_node: fx.Node, form: WeightForm) -> PackedWeight:
    codes, (_, weight_scales) = weight_codes(gm, codes_node), weight_tensors(gm, layer)
    codes, weight_scales = form.arrange(codes, weight_scales.float())
    base = str(codes_node.target)
    parts = []
    for first, last in input_parts(codes):
        inputs = codes[:, first:last].contiguous()
        packed, sums = qdiff.pack_weight(inputs, layer_info(layer).weight_bits)
        names = add_buffer(gm, f"{base}_packed", packed), add_buffer(gm, f"{base}_sums", sums)
        parts.append(PackedInputs(first, last, *names, WeightReach.of_codes(inputs, weight_scales)))
    scales = torch.zeros(sums.numel())
    scales[: codes.shape[0]] = weight_scales
    return PackedWeight(
        tuple(parts), add_buffer(gm, f"{base}_padded_scales", scales), codes.shape[0], tuple(codes.shape[2:])
    )
