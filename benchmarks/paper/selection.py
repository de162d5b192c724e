"""Figure 4: calibrating on the first, middle or last steps alone, against steps spread over the trajectory."""

from __future__ import annotations

from benchmarks.paper.result import Result
from benchmarks.paper.study import Study

WHERE = ("first", "middle", "last", "uniform")


def selection(study: Study) -> Result:
    """One scale per tensor and min-max ranges, so that nothing but the calibration data differs."""
    count = max(1, study.steps // 5)
    rows = []
    for weight_bits in (8, 4):
        for where in WHERE:
            network = study.quantized(
                (where, count), weight_bits=weight_bits, act_granularity="tensor", act_range="minmax"
            )
            rows.append({"bits": f"W{weight_bits}A8", "calibrated on": f"{where} {count}", **study.fidelity(network)})

    def draw(figure):
        for index, bits in enumerate(("W8A8", "W4A8")):
            axes = figure.add_subplot(1, 2, index + 1)
            chosen = [row for row in rows if row["bits"] == bits]
            axes.bar([row["calibrated on"] for row in chosen], [row["sqnr_db"] for row in chosen])
            axes.set(title=bits, ylabel="mean ε SQNR, dB")

    return Result("Which steps calibrate (figure 4)", rows, draw)
