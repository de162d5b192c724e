"""A random network as a short description: a list of blocks, each with a few choices; printed, compared and shrunk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

# kind of block -> its choices, the simplest first
CHOICES: dict[str, dict[str, tuple[Any, ...]]] = {
    "conv": {
        "kernel": (3, 1, 5),
        "groups": (1, 2, "all"),
        "dilation": (1, 2),
        "padding": ("zeros", "same", "circular", "reflect", "replicate", "asymmetric"),
        "bias": (True, False),
        "weight": ("plain", "weight_norm", "parametrized", "spectral_norm", "equalised", "standardised", "functional"),
        "residual": (False, True),
    },
    "norm": {
        "norm": ("group", "layer", "batch", "instance", "rms", "adaptive", "none"),
        "act": ("silu", "relu", "gelu", "gelu_tanh", "mish", "leaky", "tanh", "gate", "silu_inplace", "none"),
    },
    "shift": {
        "how": ("index", "view", "reshape", "unflatten", "expand", "unsqueeze", "outer", "scale", "inplace", "concat"),
    },
    "attention": {
        "form": ("sdpa", "bmm", "einsum", "baddbmm", "upcast", "module"),
        "heads": (1, 2),
        "keys": ("self", "cross", "one_head", "learned", "chunk", "with_learned"),
        "mask": ("none", "bool", "float", "causal"),
        "project": ("linear", "fused", "conv"),
    },
    "mlp": {"form": ("gelu", "geglu", "swiglu", "tanh_gelu", "functional"), "norm": (False, True)},
    "level": {
        "down": ("conv", "avg", "max", "unshuffle", "slice"),
        "up": ("nearest", "transposed", "linear", "shuffle", "repeat", "size"),
        "skip": ("concat", "add", "none", "split_norm"),
    },
    "patches": {"unpatch": ("permute", "einsum", "transposed"), "position": (False, True)},
    "twice": {"how": ("shared", "sum", "self_sum", "two_sums", "product")},
    "odd": {
        "what": (
            *(
                "constant_image",
                "constant_conv",
                "computed_bias",
                "computed_weight",
                "summed_biases",
                "gain",
                "inplace",
            ),
            *("branch_on_shape", "halves", "glu", "stack", "pad_crop", "dropout", "buffer", "roll", "where", "clamp"),
            *("token_mix", "matmul", "addmm", "flat_norm", "einsum_mix", "mean_field", "table", "cast"),
        ),
    },
}
NESTING = frozenset({"level", "patches"})


@dataclass(frozen=True)
class Block:
    """One step of a network, and those inside it."""

    kind: str
    choices: tuple[tuple[str, Any], ...] = ()
    inner: tuple[Block, ...] = ()

    def __getitem__(self, name: str) -> Any:
        """A choice; the simplest where none was made."""
        return dict(self.choices).get(name, CHOICES[self.kind][name][0])

    def __str__(self) -> str:
        made = "".join(f", {name}={value!r}" for name, value in self.choices)
        inside = f", inner=[{', '.join(map(str, self.inner))}]" if self.inner else ""
        return f"block({self.kind!r}{made}{inside})"

    def simpler(self) -> Iterator[Block]:
        """The same with one thing less."""
        for index in range(len(self.choices)):
            yield replace(self, choices=(*self.choices[:index], *self.choices[index + 1 :]))
        for index, each in enumerate(self.inner):
            yield replace(self, inner=(*self.inner[:index], *self.inner[index + 1 :]))
            for less in each.simpler():
                yield replace(self, inner=(*self.inner[:index], less, *self.inner[index + 1 :]))


def block(kind: str, *, inner: Any = (), **choices: Any) -> Block:
    """A block as programs are printed."""
    simplest = CHOICES[kind]
    made = tuple((name, value) for name, value in choices.items() if value != simplest[name][0])
    return Block(kind, made, tuple(inner))


@dataclass(frozen=True)
class Program:
    """A network, how it is called, and how it is quantized.

    Attributes:
        blocks: between the first convolution and the last.
        rank: spatial dimensions.
        width: channels inside.
        dtype: of weights, inputs and outputs.
        timestep: its type, "none" where the network has no such argument.
        condition: what else the network is given.
        given: when: "always", or it is optional and "captured", left out in one call, or "later", only in one call.
        outputs: how it returns what.
        weight_bits, act_bits, softmax_bits: of the configuration.
        granularity: "timestep" or "tensor".
        seed: of weights and inputs.
    """

    blocks: tuple[Block, ...] = ()
    rank: int = 2
    width: int = 8
    dtype: str = "float32"
    timestep: str = "long"
    condition: str = "none"
    given: str = "always"
    outputs: str = "tensor"
    weight_bits: int = 8
    act_bits: int = 8
    softmax_bits: int = 16
    granularity: str = "timestep"
    seed: int = 0

    def __str__(self) -> str:
        plain = Program()
        changed = [
            f"{each.name}={getattr(self, each.name)!r}"
            for each in fields(self)
            if each.name != "blocks" and getattr(self, each.name) != getattr(plain, each.name)
        ]
        lines = ",\n    ".join([*map(str, self.blocks)])
        return f"program(\n    {lines},\n    {', '.join(changed)}\n)" if lines else f"program({', '.join(changed)})"

    def simpler(self) -> Iterator[Program]:
        """Programs with one thing less, the largest steps first."""
        half = len(self.blocks) // 2
        if half:
            yield replace(self, blocks=self.blocks[half:])
            yield replace(self, blocks=self.blocks[:half])
        for index, each in enumerate(self.blocks):
            yield replace(self, blocks=(*self.blocks[:index], *self.blocks[index + 1 :]))
            if each.inner:
                yield replace(self, blocks=(*self.blocks[:index], *each.inner, *self.blocks[index + 1 :]))
        plain = Program()
        for each in fields(self):
            if each.name not in ("blocks", "seed") and getattr(self, each.name) != getattr(plain, each.name):
                yield replace(self, **{each.name: getattr(plain, each.name)})
        for index, each in enumerate(self.blocks):
            for less in each.simpler():
                yield replace(self, blocks=(*self.blocks[:index], less, *self.blocks[index + 1 :]))


def program(*blocks: Block, **settings: Any) -> Program:
    """A program as it is printed."""
    return Program(blocks, **settings)


SETTINGS: dict[str, tuple[Any, ...]] = {
    "rank": (2, 2, 2, 1, 3),
    "width": (8, 16, 12, 32),
    "dtype": ("float32", "float32", "float16", "bfloat16", "float64"),
    "timestep": ("long", "long", "float", "none"),
    "condition": ("none", "tokens", "labels", "image", "scalar"),
    "outputs": ("tensor", "tuple", "dict", "more", "time"),
    "weight_bits": (8, 8, 4),
    "act_bits": (8, 8, 8, 6),
    "softmax_bits": (16, 8),
    "granularity": ("timestep", "timestep", "tensor"),
}
GIVEN = ("always", "always", "captured", "later")


@dataclass
class Draw:
    """Programs from a seed."""

    random: Any
    depth: int = field(default=0)

    def program(self, seed: int) -> Program:
        settings = {name: self.random.choice(values) for name, values in SETTINGS.items()}
        blocks = self.blocks(1, 4)
        given = self.random.choice(GIVEN) if settings["condition"] != "none" else GIVEN[0]
        return Program(blocks, seed=seed, given=given, **settings)

    def blocks(self, least: int, most: int) -> tuple[Block, ...]:
        return tuple(self.block() for _ in range(self.random.randint(least, most)))

    def block(self) -> Block:
        kinds = [kind for kind in CHOICES if self.depth < 2 or kind not in NESTING]
        kind = self.random.choice([*kinds, "conv", "norm", "shift", "odd"])
        # Half of the choices are the simplest.
        choices = {
            name: self.random.choice(values)
            for name, values in CHOICES[kind].items()
            if len(CHOICES[kind]) == 1 or self.random.random() < 0.5
        }
        inner: tuple[Block, ...] = ()
        if kind in NESTING:
            self.depth += 1
            inner = self.blocks(0, 2)
            self.depth -= 1
        return block(kind, inner=inner, **choices)
