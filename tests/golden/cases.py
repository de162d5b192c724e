"""The cases: which network, quantized how, run on which backends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qdiff_fx import QDiffConfig, Rule

from .subjects import Subject, anime, digits, random_network

# Every setting is spelled out: a new default is no change of a result.
SETTINGS: dict[str, Any] = {
    "weight_bits": 8,
    "act_bits": 8,
    "softmax_bits": 8,
    "edge_weight_bits": 8,
    "sample_act_bits": 16,
    "split": "shortcut",
    "weight_range": "mse",
    "weight_rounding": "nearest",
    "act_range": "mse",
    "act_granularity": "timestep",
    "quantize_attention": True,
    "num_train_timesteps": 1000,
    "timestep_bins": 5,
}
# 16-bit inputs, every kind of weight bits, a wide softmax, a layer left in float.
MIXED = (
    Rule("*", weight_bits=4),
    Rule("down_blocks.*", weight_bits=6, act_bits=16),
    Rule("mid_block.*", act_bits=7),
    Rule("up_blocks.*.attentions.*", weight_bits=8, softmax_bits=16),
    Rule("up_blocks.0.resnets.0.*", weight_bits=3, act_bits=16),
    Rule("up_blocks.1.resnets.0.conv2", quantize=False),
)


@dataclass(frozen=True)
class Run:
    """One backend, and whether layers' outputs are quantized."""

    backend: str
    output_quantizers: bool = False

    @property
    def name(self) -> str:
        return self.backend + (" output quantizers" if self.output_quantizers else "")


REFERENCE, NATIVE = Run("reference"), Run("native")
TORCH_AO = (Run("reference", output_quantizers=True), Run("x86"))


@dataclass(frozen=True)
class Case:
    """One quantized network whose tensors and outputs are recorded."""

    name: str
    load: Callable[[], Subject]
    config: QDiffConfig
    runs: tuple[Run, ...] = (REFERENCE, NATIVE)

    @property
    def quantizes_outputs(self) -> bool:
        """Whether one of the runs needs the ranges of what layers return."""
        return any(run in TORCH_AO for run in self.runs)


def _config(**changes: Any) -> QDiffConfig:
    return QDiffConfig(**(SETTINGS | changes))


def _trained(name: str, load: Callable[[], Subject], rounding: str, **changes: Any) -> tuple[Case, ...]:
    return (
        Case(f"{name}-w8a8", load, _config(**changes), (REFERENCE, NATIVE, *TORCH_AO)),
        Case(f"{name}-w4a8", load, _config(weight_bits=4, weight_rounding=rounding, **changes)),
        Case(f"{name}-mixed", load, _config(rules=MIXED, **changes)),
    )


# One network of every family, and with it the settings the trained ones do not have.
RANDOM: dict[str, dict[str, Any]] = {
    "ddpm_cifar": {"split": "all"},
    "ddpm_scale_shift": {"act_range": "percentile"},
    "ddpm_resnet_downsample": {"sample_act_bits": 8},
    "sd2": {"act_granularity": "tensor"},
    "sdxl": {"act_range": "minmax"},
    "lcm": {"quantize_attention": False},
    "controlnet": {"act_range": "moving_average"},
    "masked": {"softmax_bits": 16},
    "handwritten_sum": {"weight_range": "max"},
    "handwritten_attention": {"split": "off"},
    "handwritten_matmul": {"weight_bits": 2, "act_bits": 4, "edge_weight_bits": 3},
}

CASES: tuple[Case, ...] = (
    *_trained("digits", digits, "second_order"),
    *(Case(f"random-{name}", random_network(name), _config(**changes)) for name, changes in RANDOM.items()),
    *_trained("anime", anime, "nearest", num_train_timesteps=300),
)


def select(words: list[str]) -> list[Case]:
    """The cases whose names hold one of the words, or all without any; raises ValueError for a word none holds."""
    for word in words:
        if not any(word in case.name for case in CASES):
            raise ValueError(f"no case is called {word!r}; there are {', '.join(case.name for case in CASES)}")
    return [case for case in CASES if not words or any(word in case.name for word in words)]
