"""Operator calls as lines of text: `int_conv 17 dilation[0]=6148914691236517206 codes[0]=sparse`.

A line names an operator, the seed of a valid call of it, and moves that spoil some of its arguments. It is all there is
to a problem, so a line that fails is its own reproducer.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qdiff_fx.kernels import ops as plain
from qdiff_fx.kernels.activations import Activation
from tests.fuzz.tensors import KINDS

ops = torch.ops.qdiff
Arguments = dict[str, Any]
Pack = Callable[[Tensor, int], tuple[Tensor, Tensor]]
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
MOST_ELEMENTS = 1 << 24  # of a tensor that can be spoiled further: most ways copy it
CONTENTS = {"nan", "inf", "-inf", "big", "tiny", "most", "least", "zeros"}  # kinds that change what a tensor holds
OPAQUE = {"weights", "weight_sums"}  # arguments that compiled and plain kernels hold in forms of their own


@dataclass(frozen=True)
class Move:
    """One argument, or one item of a list, and what is put in its place."""

    argument: str
    item: int | None
    word: str

    @classmethod
    def parse(cls, text: str) -> Move:
        """From `argument=word` or `argument[item]=word`."""
        place, _, word = text.partition("=")
        name, _, item = place.partition("[")
        return cls(name, int(item.rstrip("]")) if item else None, word)

    def __str__(self) -> str:
        return f"{self.argument}{'' if self.item is None else f'[{self.item}]'}={self.word}"

    def apply(self, arguments: Arguments) -> None:
        """Put it in; what is not there (a sixth source) stays so."""
        old = arguments[self.argument]
        if self.item is None:
            arguments[self.argument] = self._value(old)
        elif isinstance(old, list) and self.item < len(old):
            old[self.item] = self._value(old[self.item])

    def _value(self, old: Any) -> Any:
        if self.word in KINDS:
            tensor = old if isinstance(old, Tensor) else torch.ones(3)
            return tensor if tensor.numel() > MOST_ELEMENTS else KINDS[self.word](tensor)
        if self.word.startswith("torch."):
            return getattr(torch, self.word.removeprefix("torch."))
        if self.word in ("fewer", "twice") and isinstance(old, list):
            return old[:-1] if self.word == "fewer" else old + old
        if self.word == "None":
            return None
        return json.loads(self.word)  # which knows NaN and Infinity too


@dataclass(frozen=True)
class Problem:
    """A call of an operator."""

    operator: str
    seed: int
    moves: tuple[Move, ...] = ()

    @classmethod
    def parse(cls, line: str) -> Problem:
        """From its line."""
        operator, seed, *moves = line.split()
        return cls(operator, int(seed), tuple(Move.parse(each) for each in moves))

    def __str__(self) -> str:
        return " ".join((self.operator, str(self.seed), *map(str, self.moves)))

    def arguments(self, pack: Pack) -> Arguments:
        """What the operator is called with, by name; `pack` is that of the kernels that are called."""
        arguments = valid(self.operator, self.seed, pack)
        for move in self.moves:
            move.apply(arguments)
        return arguments

    @property
    def has_numbers(self) -> bool:
        """Whether compiled and plain kernels have to agree about the result."""
        return not any(move.word in CONTENTS or move.argument in OPAQUE for move in self.moves)


def valid(operator: str, seed: int, pack: Pack = plain.pack_weight.reference) -> Arguments:
    """A call that is right in everything, by the names of the operator's schema."""
    torch.manual_seed(seed)
    return VALID[operator](random.Random(seed), pack)


def _output(draw: random.Random, prefix: str = "out_") -> Arguments:
    dtype = draw.choice((*FLOATS, torch.uint8, torch.int8))
    numbers: tuple[float, int, int, int] = (1.0, 0, 0, 0)
    if dtype not in FLOATS:
        bits = draw.choice((8, 8, 6, 4))
        low = 0 if dtype == torch.uint8 else -(2 ** (bits - 1))
        numbers = draw.uniform(0.01, 3.0), draw.randint(low, low + 2**bits - 1), low, low + 2**bits - 1
    names = (f"{prefix}{name}" for name in ("scale", "zero_point", "low", "high"))
    return {"out_dtype": dtype, **dict(zip(names, numbers, strict=True))}


def _codes(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def _laid_out(draw: random.Random, x: Tensor) -> Tensor:
    """The same values as a network may have them in memory."""
    kind = draw.choice(("channels_last", "contiguous", "slice"))
    if kind == "contiguous" or x.dim() != 4:
        return x
    if kind == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    wider = torch.zeros((x.shape[0], x.shape[1] + 3, *x.shape[2:]), dtype=x.dtype)
    wider = wider.contiguous(memory_format=torch.channels_last)
    wider[:, 1:-2] = x
    return wider[:, 1:-2]


def _packed(draw: random.Random, pack: Pack, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """A weight with its scales and sums."""
    bits = draw.choice((8, 8, 4, 3))
    weight, sums = pack(torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), shape, dtype=torch.int8), bits)
    scales = torch.zeros(sums.numel())
    scales[: shape[0]] = torch.rand(shape[0]) / 100
    return weight, scales, sums


def _conv(draw: random.Random, pack: Pack) -> Arguments:
    batch, out = draw.choice((0, 1, 1, 2, 3)), draw.choice((1, 5, 16, 17, 40, 64, 70, 130))
    kernel = list(draw.choice(((1, 1), (3, 3), (1, 3), (4, 2))))
    stride, dilation, enlarge = ([draw.randint(1, 2), draw.randint(1, 2)] for _ in range(3))
    size = [dilation[i] * (kernel[i] - 1) + draw.randint(1, 7) for i in range(2)]
    channels = [draw.choice((1, 3, 4, 8, 13, 64)) for _ in range(draw.randint(1, 3))]
    packed = [_packed(draw, pack, out, each, *kernel) for each in channels]
    arguments: Arguments = {
        "codes": [_laid_out(draw, _codes(batch, each, *size)) for each in channels],
        "scales": [draw.uniform(0.001, 0.1) for _ in channels],
        "zero_points": [draw.randint(0, 255) for _ in channels],
        "weights": [each[0] for each in packed],
        "weight_scales": [each[1] for each in packed],
        "weight_sums": [each[2] for each in packed],
        "out_channels": out,
        "kernel": kernel,
        "stride": stride,
        "padding": [draw.randint(0, 2) for _ in range(4)],
        "dilation": dilation,
        "enlarge": enlarge,
        "bias": torch.randn(out) if draw.random() < 0.5 else None,
        "shift": torch.randn(draw.choice((1, batch)), out) if draw.random() < 0.5 else None,
        "residual": None,
        "activation": draw.randint(0, 3),
        **_output(draw),
    }
    if draw.random() < 0.5:
        padded = [size[i] * enlarge[i] + sum(arguments["padding"][2 * i : 2 * i + 2]) for i in range(2)]
        made = [(padded[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2)]
        arguments["residual"] = _laid_out(draw, torch.randn(batch, out, *made).to(draw.choice(FLOATS)))
    return arguments


def _depthwise(draw: random.Random, pack: Pack) -> Arguments:
    batch, channels, kernel = (
        draw.choice((0, 1, 2)),
        draw.choice((1, 5, 16, 17, 64, 70)),
        draw.choice(((1, 1), (3, 3), (1, 3))),
    )
    stride, dilation = ([draw.randint(1, 2), draw.randint(1, 2)] for _ in range(2))
    padding = [draw.randint(0, 2) for _ in range(4)]
    size = [dilation[i] * (kernel[i] - 1) + draw.randint(1, 7) for i in range(2)]
    made = [
        (size[i] + sum(padding[2 * i : 2 * i + 2]) - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    ]
    residual = _laid_out(draw, torch.randn(batch, channels, *made).to(draw.choice(FLOATS)))
    return {
        "codes": _laid_out(draw, _codes(batch, channels, *size)),
        "scale": draw.uniform(0.001, 0.1),
        "zero_point": draw.randint(0, 255),
        "weight": torch.randint(-128, 128, (*kernel, channels), dtype=torch.int8),
        "weight_scale": torch.rand(channels) / 100,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "bias": torch.randn(channels) if draw.random() < 0.5 else None,
        "residual": residual if draw.random() < 0.5 else None,
        "activation": draw.randint(0, 3),
        **_output(draw),
    }


def _linear(draw: random.Random, pack: Pack) -> Arguments:
    rows = draw.choice(((1,), (7,), (2, 5), (2, 3, 4), (0,), (), (3, 0)))
    features, out = draw.randint(1, 70), draw.choice((1, 16, 33, 64, 100, 200))
    activation = draw.randint(0, 4)
    count = 2 if activation == Activation.GEGLU else 1
    packed = [_packed(draw, pack, out, features) for _ in range(count)]
    residual = torch.randn(*rows, out).to(draw.choice(FLOATS)) if draw.random() < 0.5 and count == 1 else None
    return {
        "codes": _codes(*rows, features),
        "scale": draw.uniform(0.001, 0.1),
        "zero_point": draw.randint(0, 255),
        "weights": [each[0] for each in packed],
        "weight_scales": [each[1] for each in packed],
        "weight_sums": [each[2] for each in packed],
        "out_features": out,
        "bias": torch.randn(out * count) if draw.random() < 0.5 else None,
        "residual": residual,
        "activation": activation,
        **_output(draw),
    }


def _gram(draw: random.Random, pack: Pack) -> Arguments:
    rows, columns = draw.choice((0, 1, 15, 16, 33, 100)), draw.choice((1, 5, 16, 17, 64, 70, 130))
    total = torch.randint(-(2**31), 2**31 - 1, (columns, columns), dtype=torch.int32)
    codes = torch.randint(-128, 128, (rows, columns), dtype=torch.int8)
    return {"total": total, "rows": codes.T.contiguous().T if draw.random() < 0.3 else codes}


def _feedback(draw: random.Random, pack: Pack) -> Arguments:
    columns, channels = draw.choice((1, 5, 16, 40, 128)), draw.choice((0, 1, 16, 17, 130))
    factor = torch.randn(columns, columns) / columns**0.5
    factor.diagonal().abs_().add_(0.3)
    steps = torch.randn(columns, channels) * 5
    return {"steps": steps, "pull": torch.randn(columns, channels), "factor": factor, "low": -8, "high": 7}


def _pack_weight(draw: random.Random, pack: Pack) -> Arguments:
    bits = draw.randint(2, 8)
    shape = [draw.choice((1, 5, 16, 17, 70, 130)), *(draw.randint(1, 9) for _ in range(draw.randint(1, 3)))]
    return {"codes": torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), shape, dtype=torch.int8), "bits": bits}


def _group_norm(draw: random.Random, pack: Pack) -> Arguments:
    groups, batch = draw.choice((1, 2, 4)), draw.choice((0, 1, 2, 3))
    space = draw.choice(((), (5,), (9, 8), (3, 4, 2), (20, 11), (0,)))
    channels = [draw.randint(1, 40) for _ in range(draw.randint(1, 3))]
    channels[-1] += -sum(channels) % groups
    dtype = draw.choice(FLOATS)
    affine = draw.random() < 0.5
    return {
        "parts": [_laid_out(draw, (torch.randn(batch, each, *space) * 3).to(dtype)) for each in channels],
        "groups": groups,
        "weight": torch.randn(sum(channels)) if affine else None,
        "bias": torch.randn(sum(channels)) if affine else None,
        "epsilon": 1e-5,
        "activation": draw.randint(0, 1),
        **_output(draw, ""),
    }


def _layer_norm(draw: random.Random, pack: Pack) -> Arguments:
    x = torch.randn(*draw.choice(((3,), (2, 5), (0,), ())), draw.randint(1, 90)) * 4
    affine = draw.random() < 0.5
    return {
        "x": x.to(draw.choice(FLOATS)),
        "weight": torch.randn(x.shape[-1]) if affine else None,
        "bias": torch.randn(x.shape[-1]) if affine else None,
        "epsilon": 1e-5,
        **_output(draw, ""),
    }


def _floats(draw: random.Random) -> Tensor:
    shape = draw.choice(((3,), (2, 5), (2, 3, 4, 5), (0, 4), (33, 70)))
    x = torch.randn(*shape, draw.randint(0, 45) * 2) * draw.choice((1.0, 30.0))
    x = x.to(draw.choice(FLOATS))
    return x.transpose(0, 1) if x.dim() > 2 and draw.random() < 0.5 else x


def _act_quantize(draw: random.Random, pack: Pack) -> Arguments:
    return {"x": _floats(draw), "activation": draw.randint(0, 4), **_output(draw, "")}


def _act_quantize_rest(draw: random.Random, pack: Pack) -> Arguments:
    scale = draw.uniform(0.01, 0.2)
    numbers = {"scale": scale, "zero_point": draw.randint(0, 255), "low": 0, "high": 255}
    rest = {"rest_scale": scale / 255, "rest_zero_point": draw.choice((127, 128))}
    return {"x": _floats(draw), "activation": draw.randint(0, 4), **numbers, **rest}


def _tokens(draw: random.Random) -> Arguments:
    lead = draw.choice(((), (3,), (2, 3), (1, 2, 2), (0, 2)))
    queries, keys, dim = draw.choice((0, 1, 7, 33)), draw.choice((0, 1, 5, 64, 77)), draw.choice((1, 8, 20, 40, 513))
    q, k, v = _codes(*lead, queries, dim), *(_codes(*lead, keys, dim).view(torch.int8) for _ in range(2))
    if len(lead) == 2 and draw.random() < 0.5:
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    mask = draw.choice((None, None, torch.rand(queries, keys) > 0.3, torch.randn(1, keys)))
    return {"q": q, "k": k, "v": v, "mask": mask}


def _attention(draw: random.Random, pack: Pack) -> Arguments:
    numbers = [torch.tensor(draw.uniform(0.001, 0.05)) for _ in range(3)]
    return {
        **_tokens(draw),
        "q_scale": numbers[0],
        "q_zero_point": torch.tensor(draw.randint(0, 255)),
        "k_scale": numbers[1],
        "v_scale": numbers[2],
        "softmax_scale": draw.uniform(0.05, 1.0),
        "prob_bits": draw.choice((8, 8, 5, 1, 12)),
        "out_dtype": draw.choice((*FLOATS, torch.float64)),
    }


def _attention_numbers(draw: random.Random, pack: Pack) -> Arguments:
    found = _attention(draw, pack)
    held = {name: each.item() if isinstance(each, Tensor) and each.dim() == 0 else each for name, each in found.items()}
    return {**held, **_output(draw)}


def _timestep_bin(draw: random.Random, pack: Pack) -> Arguments:
    steps = draw.choice((torch.tensor([500.0, 500.0]), torch.tensor(3), torch.tensor([999], dtype=torch.int32)))
    return {"timestep": steps, "bins": draw.randint(1, 20), "num_train_timesteps": draw.choice((1, 50, 1000))}


def _nearest_codes(draw: random.Random, pack: Pack) -> Arguments:
    weight = torch.randn(draw.choice((0, 1, 7)), draw.choice((0, 1, 9, 40, 700))) * draw.choice((0.0, 1e-30, 1.0, 1e30))
    numbers = {"candidates": draw.choice((1, 2, 80)), "shrink": 0.01, "power": draw.choice((1.0, 2.0, 2.4))}
    return {"weight": weight.to(draw.choice(FLOATS)).nan_to_num(), "bits": draw.randint(2, 8), **numbers}


def _adaround_step(draw: random.Random, pack: Pack) -> Arguments:
    shape = draw.choice((0, 1, 7)), draw.choice((0, 1, 9, 40, 700))
    bits, dtype = draw.randint(2, 8), draw.choice(FLOATS)
    high = 2 ** (bits - 1)
    return {
        "up": torch.randn(shape) * 4,
        "first": torch.randn(shape) * draw.choice((0.0, 1e-20, 1.0)),
        "second": torch.rand(shape) * draw.choice((0.0, 1e-20, 1.0)),
        "weight": torch.zeros(shape, dtype=dtype),
        "base": torch.randint(-high, high, shape, dtype=torch.int8),
        "scales": torch.rand(shape[0]),
        "gradient": torch.randn(shape).to(draw.choice(FLOATS)),
        "bits": bits,
        "step": draw.choice((1, 2, 1000)),
        "rate": draw.choice((0.0, 0.02)),
        "pull": draw.choice((0.0, 0.01)),
        "beta": draw.choice((1.0, 2.0, 20.0)),
    }


def _histogram(draw: random.Random, pack: Pack) -> Arguments:
    rows = torch.randn(draw.choice((0, 1, 3)), draw.choice((0, 1, 9, 40, 700))).to(draw.choice(FLOATS))
    return {
        "rows": rows,
        "exponent": draw.randint(-20, 20),
        "bins": draw.choice((2, 16, 2048)),
        "step": draw.choice((1, 3)),
    }


VALID: dict[str, Callable[[random.Random, Pack], Arguments]] = {
    "pack_weight": _pack_weight,
    "round_with_feedback": _feedback,
    "int_conv": _conv,
    "int_depthwise_conv": _depthwise,
    "int_gram": _gram,
    "int_linear": _linear,
    "group_norm_act": _group_norm,
    "layer_norm_act": _layer_norm,
    "act_quantize": _act_quantize,
    "act_quantize_rest": _act_quantize_rest,
    "int_attention": _attention,
    "int_attention_vnni": _attention,
    "int_attention_vnni.numbers": _attention_numbers,
    "timestep_bin": _timestep_bin,
    "nearest_codes": _nearest_codes,
    "histogram": _histogram,
    "adaround_step": _adaround_step,
}
