"""How long and how a network is reconstructed: frozen, checked on construction, with three presets."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from qdiff_fx.errors import ConfigError
from qdiff_fx.reconstruction.precision import multiplies_bfloat16

Objective = Literal["output", "plain"]

PRESETS = ("fast", "standard", "paper")


@dataclass(frozen=True)
class ReconstructionConfig:
    """The schedule of block reconstruction (Q-Diffusion, section 4.3 and appendix).

    Attributes:
        weight_steps: Adam steps on the rounding of each unit's weights.
        act_steps: Adam steps on the step sizes of each unit's activations.
        batch_size: samples per step, spread evenly over the timesteps.
        weight_rate: learning rate of AdaRound's V where it begins.
        rate_growth: how many times as high it is at the end, along a line.
        head_start: how far from the float weight, where AdaRound starts, towards the codes given, from 0 to below 1.
        bias_rate: learning rate of the biases; 0 keeps them.
        scale_rate: learning rate of the logarithm of the weights' scales, which are learned with the step sizes; decays
            with theirs; 0 keeps them.
        act_rate: learning rate of the logarithm of the step sizes; decays to 0 along a cosine.
        regularisation: λ, the weight of the rounding regulariser.
        warm_up: share of the weight steps before the regulariser acts.
        beta: its exponent at the end of the warm-up and at the end.
        act_loss_power: p of the activations' loss, mean |error|^p; for the plain objective.
        objective: "output": a unit's error as it shows in the network's output, see `output_sensitivity`;
            "plain": its squared error, as BRECQ and Q-Diffusion have it.
        typical_loss: a unit whose rounded weights cause this relative error of the output takes the steps given here;
            one of another loss as many times more or fewer as the root of the losses' ratio, up to three times as
            many, and none where it would be less than a twentieth: such units decide nothing. 0: all take the same.
        bfloat16: run the units' layers in bfloat16 while they learn, not where they are judged; None: where this
            processor has products of it.
        joint: learn a unit's activations right after its weights, its inputs quantized in both respects. Otherwise,
            as the paper does, all weights first, under float activations, then all activations.
        samples: calibration samples used at most, evenly over the timesteps; 0: all of them.
        cache_bytes: size of the files that hold cached activations, at most; fewer samples are used where it is short.
        seed: of the batches.
    """

    weight_steps: int = 480
    act_steps: int = 80
    batch_size: int = 8
    weight_rate: float = 1.6e-2
    rate_growth: float = 2.25
    head_start: float = 0.7
    bias_rate: float = 1e-3
    act_rate: float = 4e-3
    scale_rate: float = 1e-3
    regularisation: float = 1e-2
    warm_up: float = 0.2
    beta: tuple[float, float] = (20.0, 2.0)
    act_loss_power: float = 2.0
    objective: Objective = "output"
    typical_loss: float = 1e-4
    bfloat16: bool | None = None
    joint: bool = True
    samples: int = 0
    cache_bytes: int = 4 << 30
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("weight_steps", "act_steps", "samples", "seed"):
            self._check(name, getattr(self, name) >= 0, "0 or more")
        for name in ("batch_size", "cache_bytes"):
            self._check(name, getattr(self, name) >= 1, "1 or more")
        for name in (
            "weight_rate",
            "rate_growth",
            "bias_rate",
            "act_rate",
            "scale_rate",
            "regularisation",
            "typical_loss",
        ):
            self._check(name, getattr(self, name) >= 0, "0 or more")
        self._check("head_start", 0 <= self.head_start < 1, "from 0 up to, not including, 1")
        self._check("warm_up", 0 <= self.warm_up < 1, "from 0 up to, not including, 1")
        self._check("objective", self.objective in get_args(Objective), f"one of {list(get_args(Objective))}")
        self._check("beta", len(self.beta) == 2 and min(self.beta) > 0, "two positive exponents")
        self._check("act_loss_power", self.act_loss_power >= 1, "1 or more")

    @property
    def in_bfloat16(self) -> bool:
        """Whether layers run in bfloat16 on this processor while they learn."""
        return multiplies_bfloat16() if self.bfloat16 is None else self.bfloat16

    def _check(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ConfigError(f"{getattr(self, name)!r} is not supported", where=name, fix=f"Use {allowed}")

    @staticmethod
    def fast() -> ReconstructionConfig:
        """Minutes on a network of 60 million parameters."""
        return ReconstructionConfig()

    @staticmethod
    def standard() -> ReconstructionConfig:
        """About an hour."""
        return ReconstructionConfig(weight_steps=1200, act_steps=200, weight_rate=8e-3, rate_growth=1.0)

    @staticmethod
    def paper() -> ReconstructionConfig:
        """The iteration counts and rates of the paper: days on a CPU."""
        return ReconstructionConfig(
            weight_steps=20_000,
            act_steps=5_000,
            batch_size=32,
            weight_rate=1e-3,
            rate_growth=1.0,
            head_start=0.0,
            bias_rate=0.0,
            act_rate=4e-4,
            scale_rate=0.0,
            act_loss_power=2.4,
            objective="plain",
            typical_loss=0.0,
            bfloat16=False,
            joint=False,
        )

    @staticmethod
    def preset(name: str) -> ReconstructionConfig:
        """The preset of that name; raises ConfigError with the known ones."""
        if name not in PRESETS:
            raise ConfigError(f"{name!r} is no preset", where="reconstruct", fix=f"Choose one of {', '.join(PRESETS)}")
        preset: ReconstructionConfig = getattr(ReconstructionConfig, name)()
        return preset

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
