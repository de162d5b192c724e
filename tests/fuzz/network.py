"""A program as a network, and the calls it is tried with."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fuzz.blocks import CONVS, TOKEN_WIDTH, State, chain
from tests.fuzz.program import Program

CHANNELS, CLASSES, STEPS = 3, 10, 1000
SIZES = {1: 8, 2: 4, 3: 4}


class Network(nn.Module):
    """First convolution, the blocks, last convolution; a time embedding and what else conditions it."""

    def __init__(self, program: Program):
        super().__init__()
        self.condition, self.outputs, width, rank = program.condition, program.outputs, program.width, program.rank
        channels = 2 * CHANNELS if program.condition == "image" else CHANNELS
        self.first, self.last = (CONVS[rank](i, o, 3, padding=1) for i, o in ((channels, width), (width, CHANNELS)))
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.labels = nn.Embedding(CLASSES, width)
        self.blocks = chain(program.blocks, width, rank)

    def embedded(self, t: Tensor) -> Tensor:
        half = self.first.out_channels // 2
        rates = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
        angles = t[:, None].float() * rates[None]
        return self.time(torch.cat([angles.sin(), angles.cos()], dim=-1).to(self.first.weight.dtype))

    def run(self, x: Tensor, t: Tensor | None, tokens=None, labels=None, image=None, scalar=None) -> Any:
        emb = None if t is None else self.embedded(t)
        if labels is not None:
            emb = self.labels(labels) if emb is None else emb + self.labels(labels)
        inputs = torch.cat([x, x if image is None else image], dim=1) if self.condition == "image" else x
        h = self.blocks(self.first(inputs), State(emb, tokens, x))
        y = self.last(F.silu(h))
        if scalar is not None:
            y = y * scalar
        if self.outputs == "tensor":
            return y
        if self.outputs == "tuple":
            return (y,)
        if self.outputs == "dict":
            return {"sample": y, "hidden": h}
        return (y, y if emb is None else emb) if self.outputs == "time" else (y, h.mean((-1,)))


class Plain(Network):
    def forward(self, x: Tensor) -> Any:
        return self.run(x, None)


class Timed(Network):
    def forward(self, x: Tensor, t: Tensor) -> Any:
        return self.run(x, t)


class WithTokens(Network):
    def forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Any:
        return self.run(x, t, tokens=tokens)


class WithLabels(Network):
    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Any:
        return self.run(x, t, labels=labels)


class WithImage(Network):
    def forward(self, x: Tensor, t: Tensor, image: Tensor) -> Any:
        return self.run(x, t, image=image)


class WithScalar(Network):
    def forward(self, x: Tensor, t: Tensor, scalar: Tensor) -> Any:
        return self.run(x, t, scalar=scalar)


class MaybeTokens(Network):
    def forward(self, x: Tensor, t: Tensor, tokens: Tensor | None = None) -> Any:
        return self.run(x, t, tokens=tokens)


class MaybeLabels(Network):
    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Any:
        return self.run(x, t, labels=labels)


class MaybeImage(Network):
    def forward(self, x: Tensor, t: Tensor, image: Tensor | None = None) -> Any:
        return self.run(x, t, image=image)


class MaybeScalar(Network):
    def forward(self, x: Tensor, t: Tensor, scalar: Tensor | None = None) -> Any:
        return self.run(x, t, scalar=scalar)


# By what conditions a network: where it has to be given, and where it is optional.
KINDS = {
    "none": (Timed, Timed),
    "tokens": (WithTokens, MaybeTokens),
    "labels": (WithLabels, MaybeLabels),
    "image": (WithImage, MaybeImage),
    "scalar": (WithScalar, MaybeScalar),
}


def build(program: Program) -> nn.Module:
    """The network in eval mode, random weights by the program's seed."""
    torch.manual_seed(program.seed)
    kind = Plain if program.timestep == "none" else KINDS[program.condition][program.given != "always"]
    if kind is Plain:
        program = Program(**{**vars(program), "condition": "none"})
    return kind(program).eval().requires_grad_(False).to(getattr(torch, program.dtype))


def call(
    program: Program,
    batch: int,
    *,
    scale: int = 1,
    mixed: bool = False,
    tokens: int = 5,
    condition: bool | None = None,
) -> dict[str, Any]:
    """Random arguments; all samples have one timestep unless they are `mixed`.

    What conditions the network is among them where it is captured with it, or as `condition` says.
    """
    dtype = getattr(torch, program.dtype)
    size = [SIZES[program.rank] * scale] * program.rank
    made: dict[str, Any] = {"x": torch.randn(batch, CHANNELS, *size).to(dtype)}
    if program.timestep == "none":
        return made
    t = torch.randint(0, STEPS, (batch,)) if mixed else torch.randint(0, STEPS, (1,)).repeat(batch)
    made["t"] = t.float() if program.timestep == "float" else t
    more: dict[str, Any] = {
        "tokens": lambda: torch.randn(batch, tokens, TOKEN_WIDTH).to(dtype),
        "labels": lambda: torch.randint(0, CLASSES, (batch,)),
        "image": lambda: torch.randn(batch, CHANNELS, *size).to(dtype),
        "scalar": lambda: torch.tensor(1.5, dtype=dtype),
    }
    if program.condition in more and (program.given != "later" if condition is None else condition):
        made[program.condition] = more[program.condition]()
    return made
