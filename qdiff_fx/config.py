"""What to quantize, and how: frozen, checked on construction."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, Literal, get_args

from qdiff_fx.errors import ConfigError
from qdiff_fx.quant.qparams import ACTIVATION_BITS, SIXTEEN_BITS, SOFTMAX_BITS, WEIGHT_BITS
from qdiff_fx.quant.range_methods import range_methods
from qdiff_fx.quant.timestep_bins import TimestepBins

SplitPolicy = Literal["shortcut", "all", "off"]
WeightRange = Literal["max", "mse"]
WeightRounding = Literal["auto", "nearest", "second_order"]
ActRange = str  # one of `range_methods()`
ActGranularity = Literal["tensor", "timestep"]


BITS = re.compile(r"(?:w(\d+))?(?:a(\d+))?(?:s(\d+))?")
"""How bits are written: of weights, activations and attention probabilities, each of which may be left out."""


def bits_of(text: str) -> dict[str, Any] | None:
    """ "w4a8" → {"weight_bits": 4, "act_bits": 8}; None where it is not of that form."""
    found = BITS.fullmatch(text)
    if not text or found is None:
        return None
    named = zip(("weight_bits", "act_bits", "softmax_bits"), found.groups())
    return {name: int(digits) for name, digits in named if digits is not None}


class QuantMethod(StrEnum):
    """Names of ways to quantize, as diffusers spells them."""

    QDIFF = "qdiff_fx"


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{value!r} is not supported", where=name, fix=f"Choose one of {sorted(map(str, choices))}")


def _check_bits(name: str, value: object, allowed: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value not in allowed:
        raise ConfigError(f"{value!r} bits are not supported", where=name, fix=f"Choose one of {list(allowed)}")


def _checked_range(value: object) -> tuple[float, float]:
    ends = tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(ends) != 2 or not all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in ends):
        raise ConfigError(
            f"{value!r} is not a range", where="timestep_range", fix="Give the smallest and the largest timestep"
        )
    return float(ends[0]), float(ends[1])


@dataclass(frozen=True)
class Rule:
    """An exception for the layers whose module path matches.

    Attributes:
        pattern: a glob over dotted module paths ("up_blocks.*.conv_shortcut"), a regular expression after "re:", or the
            id of one layer as ``explain()`` shows it ("up.conv[0:320]", "mid.attn#2").
        weight_bits, act_bits, softmax_bits, act_range: override the global setting where not ``None``. 16 ``act_bits``
            are two 8-bit codes: twice the layer's work, and for layers with weights only.
        quantize: ``False`` keeps the layer in float, ``True`` takes it back from an earlier rule that did.
    """

    pattern: str
    weight_bits: int | None = None
    act_bits: int | None = None
    softmax_bits: int | None = None
    act_range: ActRange | None = None
    quantize: bool | None = None

    def __post_init__(self) -> None:
        where = f"Rule({self.pattern!r})"
        if self.weight_bits is not None:
            _check_bits(f"{where}.weight_bits", self.weight_bits, WEIGHT_BITS)
        if self.act_bits is not None:
            _check_bits(f"{where}.act_bits", self.act_bits, (*ACTIVATION_BITS, SIXTEEN_BITS))
        if self.softmax_bits is not None:
            _check_bits(f"{where}.softmax_bits", self.softmax_bits, SOFTMAX_BITS)
        if self.act_range is not None:
            _check_choice(f"{where}.act_range", self.act_range, range_methods())
        try:
            self.matches("")
        except re.error as error:
            raise ConfigError(f"the regular expression is invalid ({error})", where=where) from error

    def matches(self, path: str, layer: str = "") -> bool:
        """Whether the dotted module path is covered by this rule, or the pattern is the id of the layer itself."""
        if layer and self.pattern == layer:
            return True
        if self.pattern.startswith("re:"):
            return re.fullmatch(self.pattern[3:], path) is not None
        return fnmatch.fnmatchcase(path, self.pattern)


@dataclass(frozen=True)
class LayerSettings:
    """The configuration as it applies to one layer, rules resolved."""

    weight_bits: int
    act_bits: int
    softmax_bits: int
    act_range: ActRange
    quantize: bool


@dataclass(frozen=True)
class QDiffConfig:
    """How a UNet is quantized.

    Attributes:
        weight_bits: 2 to 8, symmetric, one scale per output channel.
        act_bits: 4 to 8, asymmetric, one scale per tensor or per tensor and timestep bin.
        softmax_bits: bits of the attention probabilities (zero-point 0), 4 to 8 or 16.
        edge_weight_bits: at least so many bits for the weights of the layers at the network's edges: those that read
            the sample and the one whose result is the prediction. They are few, and nothing averages their error out.
        sample_act_bits: bits of the sample where a layer reads it, 4 to 8, or 16: two 8-bit codes. The error of the
            sample is noise, which is what the network predicts: it arrives in the prediction undiminished.
        split: "shortcut" quantizes the chunks of a concat that feeds a conv or linear separately (the paper,
            section 4.2), "all" also splits convs behind the norm and activation of a concat, "off" none.
        weight_range: "max", or "mse": the paper's L2.4 search over 80 candidates.
        weight_rounding: "nearest", or "second_order": codes that change the layers' outputs least, which
            ``round_weights`` chooses with calibration data. "auto" is second order where ``round_weights`` was called,
            nearest where it was not.
        act_range: how activation ranges come from the statistics.
        act_granularity: "timestep": a table of scales indexed by the timestep bin, or "tensor": one scale. A network
            without a timestep argument gets one scale either way.
        quantize_attention: put both attention matmuls in int8.
        num_train_timesteps: length of the training schedule; timesteps lie in [0, num_train_timesteps].
        timestep_bins: how many equal parts of the schedule get statistics of their own.
        timestep_range: the (smallest, largest) timestep of a network that is called with something else than the steps
            of a training schedule: log σ, a time in [0, 1]. ``calibrate`` finds it out where it is left None.
        rules: exceptions by module path; the last matching rule wins, field by field.
    """

    weight_bits: int = 8
    act_bits: int = 8
    softmax_bits: int = 8
    edge_weight_bits: int = 8
    sample_act_bits: int = SIXTEEN_BITS
    split: SplitPolicy = "shortcut"
    weight_range: WeightRange = "mse"
    weight_rounding: WeightRounding = "auto"
    act_range: ActRange = "mse"
    act_granularity: ActGranularity = "timestep"
    quantize_attention: bool = True
    num_train_timesteps: int = 1000
    timestep_bins: int = 25
    timestep_range: tuple[float, float] | None = None
    rules: tuple[Rule, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", tuple(self.rules))
        _check_bits("weight_bits", self.weight_bits, WEIGHT_BITS)
        _check_bits("act_bits", self.act_bits, ACTIVATION_BITS)
        _check_bits("softmax_bits", self.softmax_bits, SOFTMAX_BITS)
        _check_bits("edge_weight_bits", self.edge_weight_bits, WEIGHT_BITS)
        _check_bits("sample_act_bits", self.sample_act_bits, (*ACTIVATION_BITS, SIXTEEN_BITS))
        _check_choice("split", self.split, get_args(SplitPolicy))
        _check_choice("weight_range", self.weight_range, get_args(WeightRange))
        _check_choice("weight_rounding", self.weight_rounding, get_args(WeightRounding))
        _check_choice("act_range", self.act_range, range_methods())
        _check_choice("act_granularity", self.act_granularity, get_args(ActGranularity))
        for rule in self.rules:
            if not isinstance(rule, Rule):
                raise ConfigError(f"{rule!r} is not a Rule", where="rules", fix="Write Rule(pattern, ...)")
        if self.num_train_timesteps < 1:
            raise ConfigError(f"{self.num_train_timesteps} is not a schedule length", where="num_train_timesteps")
        if self.timestep_range is not None:
            object.__setattr__(self, "timestep_range", _checked_range(self.timestep_range))
        TimestepBins(self.num_train_timesteps, self.timestep_bins, self.timestep_range)

    @property
    def schedule(self) -> TimestepBins:
        """Which part of the schedule a timestep belongs to."""
        return TimestepBins(self.num_train_timesteps, self.timestep_bins, self.timestep_range)

    @staticmethod
    def of_bits(text: str, **changes: Any) -> QDiffConfig:
        """The configuration of "w4a8", "w8a8s16"; `changes` set further fields.

        Raises:
            ConfigError: it has another form, or these bits are not supported.
        """
        bits = bits_of(text)
        if bits is None:
            raise ConfigError(
                f"{text!r} says no bits", where="bits", fix='Write "w4a8": bits of weights and of activations'
            )
        return QDiffConfig(**bits, **changes)

    @staticmethod
    def qdiffusion(**changes: Any) -> QDiffConfig:
        """The authors' settings, W4A8 as in their main tables; `changes` replace fields.

        One activation scale per tensor over all timesteps, MSE ranges for weights, running min/max for activations
        (momentum 0.95, as for LSUN-Bedroom and Stable Diffusion), split shortcuts, quantized attention with an 8-bit
        softmax. Theirs and not ours: asymmetric weights, which int8 kernels do not take.
        `ReconstructionConfig.paper()` is the reconstruction that goes with it.
        """
        settings: dict[str, Any] = {
            "weight_bits": 4,
            "act_bits": 8,
            "softmax_bits": 8,
            "split": "shortcut",
            "weight_range": "mse",
            "act_range": "moving_average",
            "act_granularity": "tensor",
            "quantize_attention": True,
        }
        return QDiffConfig(**(settings | changes))

    def settings_for(
        self, path: str, layer: str = "", *, at_boundary: bool = False, reads_sample: bool = False
    ) -> LayerSettings:
        """The settings of the layer at a dotted module path, with every matching rule applied in order.

        Args:
            path: the module's path.
            layer: the layer's id, which tells it from others of that module (see `ir/facts.py`).
            at_boundary: it reads the sample, or its result is the prediction.
            reads_sample: it reads the sample.
        """
        names = [f.name for f in fields(LayerSettings)]
        chosen: dict[str, Any] = {name: True if name == "quantize" else getattr(self, name) for name in names}
        if at_boundary:
            chosen["weight_bits"] = max(self.weight_bits, self.edge_weight_bits)
        if reads_sample:
            chosen["act_bits"] = self.sample_act_bits
        for rule in self.rules:
            if rule.matches(path, layer):
                chosen |= {name: getattr(rule, name) for name in names if getattr(rule, name) is not None}
        return LayerSettings(**chosen)

    @property
    def quant_method(self) -> QuantMethod:
        """What diffusers knows it by, among its own methods."""
        return QuantMethod.QDIFF

    def to_dict(self) -> dict[str, Any]:
        """As `to_json`, with the method's name: what diffusers writes of a configuration, and `from_dict` reads."""
        return {"quant_method": self.quant_method.value, **self.to_json()}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> QDiffConfig:
        """Raises ConfigError for unknown fields."""
        return QDiffConfig.from_json({name: value for name, value in data.items() if name != "quant_method"})

    def to_json(self) -> dict[str, Any]:
        """Of its fields; without a range that is not there, so that older versions read it."""
        data = asdict(self)
        if self.timestep_range is None:
            del data["timestep_range"]
        return data

    @staticmethod
    def from_json(data: dict[str, Any]) -> QDiffConfig:
        try:
            return QDiffConfig(**{**data, "rules": tuple(Rule(**rule) for rule in data.get("rules", ()))})
        except TypeError as error:
            raise ConfigError(f"the saved configuration has unknown fields ({error})", where="config") from error
