"""How much an error in the channels of a unit's output matters to the network's output."""

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
    """Per unit, how errors in its output's channels turn into relative error of the network's output.

    With J the Jacobian of the network's output ε by the unit's output, channels c and d get
    `G_cd = sum_ij J_ijc J_ijd / |ε|²` over all elements i of ε and positions j of the unit's output, so that errors e_j
    which are independent from position to position cause the relative error `mean_j e_jᵀ G e_j`. `JᵀJ` is estimated by
    random signs v, as the mean of `(Jᵀv)(Jᵀv)ᵀ`; off its diagonal it is shrunk, the more the fewer positions it was
    estimated from. BRECQ weighs errors by the squared gradient of a loss in the same place (Li et al. 2021, equation
    10); a diffusion network has no labels, and errors of different channels that cancel in the output cost nothing.

    Args:
        gm: the network in float.
        outputs: names of the units' output nodes.
        inputs: the network's inputs by placeholder, [N, ...].
        rows: samples to average over.
    Returns:
        float32 [C, C] by output name; see `channel_rows` for what a channel is.
    """
    generator = torch.Generator().manual_seed(seed)
    products: dict[str, Tensor] = {}
    positions: dict[str, int] = {}
    power = 0.0
    for part in rows.split(chunk):
        runner = _Kept(gm, outputs)
        with torch.enable_grad():
            result = runner.run(*(tensor[part] for tensor in inputs.values()))[0]
            signs = torch.randint(0, 2, result.shape, generator=generator, dtype=result.dtype) * 2 - 1
            values = list(runner.kept.values())
            gradients = torch.autograd.grad((result * signs).sum(), values, allow_unused=True)
        power += float(result.detach().square().sum())
        for name, gradient in zip(runner.kept, gradients, strict=True):
            if gradient is not None:
                each = channel_rows(gradient.detach().float())
                products[name] = products.get(name, 0) + each.T @ each
                positions[name] = positions.get(name, 0) + len(each)
    return {name: _shrunk(total / power, positions[name]) for name, total in products.items()}


def expected_error(error: Tensor, sensitivity: Tensor) -> Tensor:
    """The relative error of the network's output to expect, `mean_j e_jᵀ G e_j`.

    Args:
        error: of a unit's output, float32.
        sensitivity: G, of that output.
    """
    rows = channel_rows(error)
    return ((rows @ sensitivity) * rows).sum(1).mean()


def channel_rows(tensor: Tensor) -> Tensor:
    """[samples and positions, C]: the channels are the second dimension of an image, the last of everything else."""
    return tensor.movedim(1 if tensor.dim() == 4 else -1, -1).flatten(0, -2)


def _shrunk(matrix: Tensor, positions: int) -> Tensor:
    """Off-diagonal elements of a C x C estimate from P positions, times P / (P + C)."""
    diagonal = torch.diag(matrix.diagonal())
    return diagonal + (matrix - diagonal) * (positions / (positions + len(matrix)))
