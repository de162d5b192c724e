"""The ladder from naive quantization to everything: what each ingredient adds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.paper.result import Result
from benchmarks.paper.study import Study


@dataclass(frozen=True)
class Rung:
    """One step up the ladder: what changes against the rung below.

    Attributes:
        changes: fields of `QDiffConfig`.
        where: which recorded timesteps calibrate, if that changes.
        reconstruction: the preset, if that changes.
    """

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    where: str | None = None
    reconstruction: str | None = None


# A rung more is a line more.
LADDER = (
    Rung("naive: min-max, calibrated on the first steps", where="first"),
    Rung("+ calibrated on all of the trajectory", where="uniform"),
    Rung("+ split shortcuts", {"split": "shortcut"}),
    Rung("+ ranges of least error (L2.4)", {"weight_range": "mse", "act_range": "mse"}),
    Rung("+ a table of scales over the timesteps", {"act_granularity": "timestep"}),
    Rung("+ the sample in two codes", {"sample_act_bits": 16}),
    Rung("+ 8-bit weights in the first and last layer", {"edge_weight_bits": 8}),
    Rung("+ second-order rounding", {"weight_rounding": "second_order"}),
    Rung("+ reconstruction (fast)", reconstruction="fast"),
)
NAIVE = {
    "split": "off",
    "weight_range": "max",
    "act_range": "minmax",
    "act_granularity": "tensor",
    "sample_act_bits": 8,
    "edge_weight_bits": 2,  # no more than the others have
}


def ablation(study: Study) -> Result:
    """ε SQNR and PSNR on every rung, at W8A8 and W4A8."""
    rows = []
    count = max(1, study.steps // 5)
    for weight_bits in (8, 4):
        config, where, preset = NAIVE | {"weight_bits": weight_bits}, "first", ""
        for rung in LADDER:
            config, where, preset = config | rung.changes, rung.where or where, rung.reconstruction or preset
            chosen = None if where == "uniform" else (where, count)
            network = study.quantized(chosen, preset, **config)
            rows.append({"bits": f"W{weight_bits}A8", "setting": rung.name, **study.fidelity(network)})

    def draw(figure):
        axes = figure.add_subplot()
        for offset, bits in ((-0.2, "W8A8"), (0.2, "W4A8")):
            values = [row["sqnr_db"] for row in rows if row["bits"] == bits]
            axes.barh([index + offset for index in range(len(values))], values, height=0.4, label=bits)
        axes.set_yticks(range(len(LADDER)), [rung.name for rung in LADDER], fontsize=8)
        axes.invert_yaxis()
        axes.set(xlabel="mean ε SQNR, dB")
        axes.legend(fontsize=8)

    return Result("From naive to everything", rows, draw)
