"""Outlier channels made smaller in the activations and larger in the weights (Xiao et al. 2023, SmoothQuant)."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from benchmarks.contender import Batch


class Smoothed(nn.Module):
    """The same function of its input: channels are divided by `scales`, and the weights multiplied by them."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, scales: Tensor):
        super().__init__()
        self.layer = layer
        shape = (-1, 1, 1) if isinstance(layer, nn.Conv2d) else (-1,)
        self.register_buffer("inverse", (1 / scales).reshape(shape))
        with torch.no_grad():
            layer.weight.mul_(scales.reshape(1, *shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x * self.inverse)


@torch.no_grad()
def smoothed(unet: nn.Module, batches: Iterable[Batch], strength: float) -> nn.Module:
    """A copy of the network with `Smoothed` layers.

    A channel's scale is ``max|x|^strength / max|w|^(1 - strength)``. The first layer is left out, whose input has two
    codes, and so are the layers that read a concatenation, whose parts have scales of their own, and those that
    depend on the timestep alone.
    """
    training = unet.training
    unet = copy.deepcopy(unet)
    layers = {name: layer for name, layer in unet.named_modules() if _applies(name, layer)}
    ranges = _channel_ranges(unet, layers, batches)
    for name, largest in ranges.items():
        layer = layers[name]
        weights = layer.weight.transpose(0, 1).flatten(1).abs().amax(1)
        scales = largest.clamp_min(1e-5) ** strength / weights.clamp_min(1e-5) ** (1 - strength)
        unet.set_submodule(name, Smoothed(layer, scales / scales.log().mean().exp()))
    return unet.train(training)  # the new modules too


def _applies(name: str, layer: nn.Module) -> bool:
    excluded = name == "conv_in" or "shortcut" in name or "time_emb" in name
    return not excluded and isinstance(layer, (nn.Conv2d, nn.Linear)) and getattr(layer, "groups", 1) == 1


def _channel_ranges(unet: nn.Module, layers: dict[str, nn.Module], batches: Iterable[Batch]) -> dict[str, Tensor]:
    """name → largest magnitude of each input channel, of layers that are called with images or sequences."""
    found: dict[str, Tensor] = {}

    def watch(name: str, axis: int):
        def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            (x,) = args
            if x.dim() > 2:
                largest = x.detach().abs().movedim(axis, 0).flatten(1).amax(1)
                found[name] = torch.maximum(found[name], largest) if name in found else largest

        return keep

    handles = [
        layer.register_forward_pre_hook(watch(name, 1 if isinstance(layer, nn.Conv2d) else -1))
        for name, layer in layers.items()
    ]
    try:
        for batch in batches:
            unet(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return found
