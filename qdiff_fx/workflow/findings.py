"""What can be found out about a saved network with its float original at hand, for the report on it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from qdiff_fx.backends.common.input_ranges import input_ranges
from qdiff_fx.evaluation import eps_sqnr, psnr_db
from qdiff_fx.evaluation.layer_errors import layer_sqnr, mean_over_steps
from qdiff_fx.ir.facts import whole_layer
from qdiff_fx.networks import QuantizedUNet
from qdiff_fx.report.amounts import milliseconds
from qdiff_fx.report.comparison import decibels, megabytes
from qdiff_fx.report.network_page import LayerRow, NetworkReport
from qdiff_fx.sampling import Trajectory, predict
from qdiff_fx.sources import SampleRequest, Source

LOOKED_AT = 3
"""Steps of the trajectory, spread evenly, that layers' errors are taken from."""
ROUNDS = 5


def findings(
    quantized: QuantizedUNet,
    origin: Source,
    request: SampleRequest,
    *,
    title: str,
    saved_bytes: int,
    note: Callable[[str], None] = lambda line: None,
) -> NetworkReport:
    """Denoise with both networks, compare every step, and look into some.

    Args:
        request: the images.
        saved_bytes: of the folder.
        note: is told what is being done.
    """
    note(f"denoising {request.count} images in {request.steps} steps with the float network")
    trajectory = origin.trajectory(request)
    note(f"denoising with the {quantized.backend} backend")
    images = origin.sample(quantized, request)
    note("comparing every step")
    eps = {quantized.backend: eps_sqnr(quantized, trajectory)}
    note("comparing every layer")
    steps = list(trajectory.batches())
    chosen = [steps[len(steps) * (2 * index + 1) // (2 * LOOKED_AT)] for index in range(min(LOOKED_AT, len(steps)))]
    errors = mean_over_steps([layer_sqnr(quantized, origin.unet, inputs) for inputs in chosen])
    note("timing every layer")
    layers = _rows(quantized, errors, quantized.layer_seconds(chosen[0]))
    rounds = _interleaved(origin, quantized, trajectory)
    config = quantized.qconfig
    facts = {
        "weights and inputs": f"W{config.weight_bits}A{config.act_bits}",
        "saved": megabytes(saved_bytes),
        "float network": megabytes(sum(each.nbytes for each in origin.unet.state_dict().values())),
        f"a step of {request.count}": milliseconds(rounds["quantized"]),
        "in float": milliseconds(rounds["float"]),
        "ε SQNR, mean": decibels(statistics.fmean(eps[quantized.backend])),
        "PSNR of the pictures": decibels(psnr_db(images, trajectory.final)),
        "made from": quantized.source or "–",
        "kernels": quantized.backend,
        "threads": str(torch.get_num_threads()),
    }
    timesteps = [float(torch.as_tensor(step.timestep).reshape(-1)[0]) for step in trajectory.steps]
    pictures = {"float": trajectory.final, facts["weights and inputs"]: images}
    return NetworkReport(title, facts, layers, timesteps, eps, pictures if trajectory.final.shape[1] in (1, 3) else {})


def _rows(quantized: QuantizedUNet, errors: Mapping[str, float], seconds: Mapping[str, float]) -> list[LayerRow]:
    ranges = input_ranges(quantized.graph_module)
    found = []
    for row in quantized.explain():
        info = row.info
        bits = f"{info.weight_bits or '–'}/{info.act_bits}" if info.act_bits else ""
        remark = "; ".join(text for text in (row.reason, row.note) if text)
        found.append(
            LayerRow(
                info.path,
                info.kind,
                bits,
                row.kernel,
                errors.get(whole_layer(info.path)),
                seconds.get(info.path),
                ranges.get(info.path, ()),
                remark,
            )
        )
    return found


@torch.no_grad()
def _interleaved(origin: Source, quantized: QuantizedUNet, trajectory: Trajectory) -> dict[str, float]:
    """Median seconds of a step of both networks, in turns."""
    step = trajectory.steps[0]
    networks: dict[str, Any] = {"float": origin.unet, "quantized": quantized}
    times: dict[str, list[float]] = {name: [] for name in networks}
    for number in range(ROUNDS + 1):
        for name, network in networks.items():
            begun = time.perf_counter()
            predict(network, step.sample, step.timestep, **trajectory.conditioning)
            if number:
                times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(each) for name, each in times.items()}
