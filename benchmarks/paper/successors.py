"""What papers after Q-Diffusion propose, each on top of the defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.paper.noise_statistics import corrected, error_statistics
from benchmarks.paper.result import Result
from benchmarks.paper.smoothing import smoothed
from benchmarks.paper.study import Study
from qdiff_fx import QuantizedUNet, Rule
from qdiff_fx.calibration import CalibrationData

STRENGTHS = (0.25, 0.5)
PROBED_STEPS = 5
TIME_EMBEDDING = (Rule("*time_emb*", quantize=False),)


def successors(study: Study) -> Result:
    """ε SQNR and PSNR of the defaults, and of the defaults with one idea each, at W8A8 and W4A8."""
    rows = []
    for weight_bits in (8, 4):
        for name, measure in _ideas(study, {"weight_rounding": "second_order", "weight_bits": weight_bits}):
            rows.append({"bits": f"W{weight_bits}A8", "setting": name, **measure()})
    return Result("Ideas from after the paper", rows)


def _ideas(study: Study, config: dict[str, Any]) -> Iterator[tuple[str, Callable[[], dict[str, float]]]]:
    base = study.quantized(**config)
    yield "defaults", lambda: study.fidelity(base)
    yield "+ error statistics of every step taken out", lambda: _corrected(study, base)
    yield "+ progressive: calibrated on the quantized trajectory", lambda: _progressive(study, base, config)
    # Whatever is done about it, it cannot get better than float.
    yield "+ time embedding in float", lambda: study.fidelity(study.quantized(**config, rules=TIME_EMBEDDING))
    for strength in STRENGTHS:
        yield f"+ outlier channels smoothed, strength {strength}", lambda: _smoothed(study, strength, config)  # noqa: B023


def _corrected(study: Study, network: QuantizedUNet) -> dict[str, float]:
    statistics = error_statistics(network, study.source.trajectory(study.draw(study.seeds[0])))
    handle = corrected(network, statistics)
    try:
        return study.fidelity(network)
    finally:
        handle.remove()


def _progressive(study: Study, network: QuantizedUNet, config: dict[str, Any]) -> dict[str, float]:
    met = study.walk(network, study.seeds[0])
    return study.fidelity(study.quantized(data=CalibrationData(list(met.batches())), **config))


def _smoothed(study: Study, strength: float, config: dict[str, Any]) -> dict[str, float]:
    unet = smoothed(study.source.unet, study.data.select("uniform", PROBED_STEPS), strength)
    return study.fidelity(study.quantized(unet=unet, **config))
