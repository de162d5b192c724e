"""Figure 3: the error of x_t grows over the steps when the quantized network denoises by itself."""

from __future__ import annotations

from benchmarks.paper.result import Result, lines
from benchmarks.paper.study import Study

SETTINGS = ((8, 8), (6, 8), (4, 8), (3, 8), (4, 6))


def accumulation(study: Study) -> Result:
    """Relative squared error of x_t against the float network's, from the same noise, after each step."""
    float_steps = [step.sample for step in study.trajectories[0].steps]
    series = {}
    for weight_bits, act_bits in SETTINGS:
        network = study.quantized(weight_bits=weight_bits, act_bits=act_bits)
        met = study.walk(network, study.seeds[1]).steps
        series[f"W{weight_bits}A{act_bits}"] = [
            float((x - y).square().sum() / y.square().sum()) for (x, *_), y in zip(met, float_steps, strict=True)
        ]
    count = len(float_steps)
    shown = (count // 4, count // 2, 3 * count // 4, count - 1)
    rows = [{"bits": name, **{f"after step {at}": values[at] for at in shown}} for name, values in series.items()]

    def draw(figure):
        axes = lines(figure, list(range(count)), series, "steps done", "relative error of x_t")
        axes.set_yscale("log")

    return Result("Error accumulation over the steps (figure 3)", rows, draw)
