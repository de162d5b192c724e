"""How much an error in each channel of a unit's output matters to the network's output."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx


class _Kept(fx.Interpreter):
    """Runs a graph and keeps the values of some nodes, ready to be differentiated by."""

    def __init__(self, gm: fx.GraphModule, names: Collection[str]):
        super().__init__(gm)
        self.names, self.kept = names, dict[str, Tensor]()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name not in self.names:
            return result
        # A unit that depends on nothing learnable still has an output to differentiate by.
        self.kept[n.name] = result if result.requires_grad else result.detach().requires_grad_()
        return self.kept[n.name]


def output_sensitivity(
    gm: fx.GraphModule, outputs: Collection[str], inputs: Mapping[str, Tensor], rows: Tensor, *, chunk: int, seed: int
) -> dict[str, Tensor]:
    """Per unit and channel, the relative error of the network's output that a unit's error of mean square 1 causes.

    With J the Jacobian of the network's output ε by the unit's output, channel c gets
    `sum_ij J_ij² / |ε|²` over all elements i of ε and all j of channel c: what errors that are independent of one
    another add up to. The diagonal of `Jᵀ J` is estimated by random signs v, `E[(Jᵀ v)²]`. BRECQ weighs errors by
    the gradient of a loss in the same place (Li et al. 2021, equation 10); a diffusion network has no labels.

    Args:
        gm: the network in float.
        outputs: names of the units' output nodes.
        inputs: the network's inputs by placeholder, [N, ...].
        rows: samples to average over.
    Returns:
        float32 [C] by output name; `channel_dim` says where channels are.
    """
    generator = torch.Generator().manual_seed(seed)
    squares: dict[str, Tensor] = {}
    power = 0.0
    for part in rows.split(chunk):
        runner = _Kept(gm, outputs)
        with torch.enable_grad():
            result = runner.run(*(tensor[part] for tensor in inputs.values()))[0]
            signs = torch.randint(0, 2, result.shape, generator=generator, dtype=result.dtype) * 2 - 1
            probed = [each for each in runner.kept.values() if each is not result]
            gradients = torch.autograd.grad((result * signs).sum(), probed, allow_unused=True)
        power += float(result.detach().square().sum())
        found = {id(each): gradient for each, gradient in zip(probed, gradients)}
        for name, value in runner.kept.items():
            gradient = torch.ones_like(value) if value is result else found[id(value)]
            total = _per_channel(torch.zeros_like(value) if gradient is None else gradient)
            squares[name] = squares.get(name, 0) + total
    return {name: total / power for name, total in squares.items()}


def channel_dim(tensor: Tensor) -> int:
    """Where the channels of a unit's output are: second of images, last of everything else."""
    return 1 if tensor.dim() == 4 else tensor.dim() - 1


def _per_channel(gradient: Tensor) -> Tensor:
    """Sum of squares over samples and positions, [C]."""
    return gradient.detach().square().movedim(channel_dim(gradient), -1).flatten(0, -2).sum(0)
