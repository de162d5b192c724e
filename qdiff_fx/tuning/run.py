"""From a calibrated network and a target to a configuration with one rule per layer."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from qdiff_fx.backends import get_backend
from qdiff_fx.calibration import CalibrationData
from qdiff_fx.config import QDiffConfig
from qdiff_fx.distributed import Workers
from qdiff_fx.errors import CalibrationError, ConfigError
from qdiff_fx.networks import PreparedUNet
from qdiff_fx.quant.qparams import WEIGHT_BITS
from qdiff_fx.tuning.allocate import (
    Budget,
    Choices,
    Menu,
    Option,
    allocate,
    check_reachable,
    predicted_sqnr_db,
    total_noise,
)
from qdiff_fx.tuning.choice import Choice
from qdiff_fx.tuning.latency import measure_layers, timed_as
from qdiff_fx.tuning.layer_substitution import LayerSubstitution
from qdiff_fx.tuning.measured import allocate_measured
from qdiff_fx.tuning.sensitivity import Sensitivity, measure
from qdiff_fx.tuning.size import fixed_bytes
from qdiff_fx.tuning.timing import Step, Yardstick
from qdiff_fx.tuning.units import DEFAULT_BITS, Unit, convert_as, units_of, with_choices


@dataclass(frozen=True)
class Tuned:
    """What `tune` found.

    Attributes:
        config: the configuration, with one rule per layer.
        choices: path → what was chosen for the layer.
        menu: what every choice of every layer adds: noise, bytes, seconds.
        sqnr_db: mean over the probed timesteps of the ε SQNR that the sum of the layers' noise predicts.
        bytes: of the saved folder; the real one is at most this large, and smaller by some kilobytes of JSON.
        seconds: measured time of a step of the tuned network; ``None`` without a latency target.
        configured_seconds: that of the network before tuning, in turns with it; ``None`` without a latency target.
    """

    config: QDiffConfig
    choices: Choices
    menu: Menu
    sqnr_db: float
    bytes: int
    seconds: float | None = None
    configured_seconds: float | None = None

    def noise_shares(self) -> dict[str, float]:
        """path → its share of the predicted noise, averaged over the probed timesteps."""
        total = total_noise(self.menu, self.choices)
        return {
            path: fmean(share / max(whole, sys.float_info.min) for share, whole in zip(self._noise(path), total))
            for path in self.choices
        }

    def _noise(self, path: str) -> tuple[float, ...]:
        return self.menu[path][self.choices[path]].noise


def tune(
    prepared: PreparedUNet,
    batches: Iterable[Mapping[str, Any]],
    *,
    target_size: int | None = None,
    target_latency: float | None = None,
    target_latency_ratio: float | None = None,
    bits: Iterable[int] = DEFAULT_BITS,
    allow_float: bool = False,
    allow_wide: bool | None = None,
    probe_steps: int = 5,
    probe_images: int = 1,
    backend: str = "native",
    latency_inputs: Mapping[str, Any] | None = None,
    sensitivity: str | os.PathLike[str] | None = None,
    source: str = "",
    progress: bool = True,
) -> Tuned:
    """Give each layer its own bits, so that the prediction's SQNR is highest under a target.

    Args:
        prepared: a calibrated network; it is not changed. Layers that its configuration keeps in float stay there.
        batches: recorded inputs, as for ``calibrate``; a few of them are probed.
        target_size: bytes of the saved folder.
        target_latency: seconds of one step, measured on this machine with `backend`.
        target_latency_ratio: instead of seconds, the share of what a step takes as configured, with all its layers at
            the configuration's bits: 1.0 asks for the best network that is no slower.
        bits: the weight bits to choose from.
        allow_float: whether a layer may stay in float. By itself that costs little where the layer is small; in the
            network its neighbours have to convert for it, which the sum of layers' times does not know.
        allow_wide: whether the input of a layer may have 16 bits, two codes and twice the work; by default only under
            a latency target.
        probe_steps, probe_images: timesteps, spread over the trajectory, and images that sensitivity is measured on.
        latency_inputs: ``forward`` arguments of the step to be timed; by default a probed batch.
        sensitivity: a JSON file that keeps the measurement, to resume it or to solve for other targets.
        source: where the network came from, which is part of what will be saved.

    Raises:
        ConfigError: no target, unsupported bits, a target that cannot be reached (the message names the smallest that
            can), or a sensitivity file of something else.
        CalibrationError: too few recorded timesteps, or batches that mix timesteps.
    """
    budget = Budget(target_size, target_latency, target_latency_ratio)
    bits = _checked_bits(bits)
    units = units_of(prepared.graph_module)
    if not units:
        raise ConfigError("no layer is quantized, so none can be tuned", where="config")
    wide = budget.times if allow_wide is None else allow_wide
    offered = {unit: unit.choices(bits, allow_float=allow_float, allow_wide=wide) for unit in units}
    probes = probe_batches(prepared, batches, probe_steps, probe_images)
    besides = fixed_bytes(prepared, units, source)
    # An impossible size is found before hours of measuring.
    if target_size is not None:
        check_reachable(_menu(offered), Budget(target_size), besides)
    file = None if sensitivity is None else Path(sensitivity)
    config = prepared.qconfig
    found = measure(prepared, units, bits, probes, file=file, progress=progress)
    if not budget.times:
        menu = _menu(offered, found)
        return _tuned(prepared, units, menu, allocate(menu, budget, bytes_besides=besides), besides)
    tensors = probes[0][1] if latency_inputs is None else prepared.signature.bind((), latency_inputs).tensors
    layers = measure_layers(LayerSubstitution(prepared), offered, tensors, backend, progress)
    menu = _menu(offered, found, layers)

    @lru_cache(maxsize=1)  # what met the target is timed twice
    def lowered_as(config: QDiffConfig) -> Callable[[], Step]:
        """What lowers the network under a configuration. Which codes it has makes no difference to time."""
        graph = convert_as(prepared, replace(config, weight_range="max"))
        return lambda: get_backend(backend).lower(graph).module

    def seconds_of(chosen: Choices) -> float:
        if all(chosen[unit.path] == unit.configured for unit in units):
            return yardstick.seconds
        seconds = yardstick(lowered_as(with_choices(config, units, chosen)))
        bar.set_postfix_str(f"{seconds / yardstick.seconds:.1%} of the untuned network's time")
        bar.update()
        return seconds

    yardstick = Yardstick(lowered_as(config), tensors)
    budget = budget.at(yardstick.seconds)
    with tqdm(desc="timing", unit="network", disable=not progress) as bar:
        choices, seconds = allocate_measured(menu, budget, bytes_besides=besides, step=seconds_of)
    return _tuned(prepared, units, menu, choices, besides, seconds, yardstick.seconds)


def share_sensitivity(
    prepared: PreparedUNet,
    batches: Iterable[Mapping[str, Any]],
    *,
    bits: Iterable[int] = DEFAULT_BITS,
    probe_steps: int = 5,
    probe_images: int = 1,
    sensitivity: str | os.PathLike[str],
    progress: bool = True,
    workers: Workers,
) -> None:
    """Measure by several processes what `tune`, with the same arguments, then finds in the file `sensitivity`.

    Args:
        workers: processes that call this together; the leading one keeps the file.
    """
    units = units_of(prepared.graph_module)
    probes = probe_batches(prepared, batches, probe_steps, probe_images)
    measure(prepared, units, _checked_bits(bits), probes, file=Path(sensitivity), progress=progress, workers=workers)


def probe_batches(
    prepared: PreparedUNet, batches: Iterable[Mapping[str, Any]], steps: int, images: int
) -> list[tuple[float, list[Tensor]]]:
    """Timestep and flat inputs of `images` samples at each of `steps` recorded timesteps, spread evenly."""
    data = batches if isinstance(batches, CalibrationData) else CalibrationData(list(batches))
    probes: dict[float, list[Tensor]] = {}
    for batch in data.select("uniform", steps).batches(images):
        name = prepared.signature.timestep.name if prepared.signature.timestep else None
        timesteps = torch.as_tensor(batch[name]).reshape(-1).unique().tolist() if name else [0.0]
        if len(timesteps) != 1:
            raise CalibrationError(
                f"it mixes timesteps {timesteps}", where="probe batch", fix="Record one timestep per batch"
            )
        probes.setdefault(timesteps[0], prepared.signature.bind((), batch).tensors)
    return list(probes.items())


def _checked_bits(bits: Iterable[int]) -> tuple[int, ...]:
    chosen = tuple(sorted(set(bits)))
    unsupported = [each for each in chosen if each not in WEIGHT_BITS]
    if unsupported or not chosen:
        raise ConfigError(
            f"weights of {unsupported or 'no'} bits are not supported",
            where="bits",
            fix=f"Choose of {list(WEIGHT_BITS)}",
        )
    return chosen


def _menu(
    offered: Mapping[Unit, tuple[Choice, ...]],
    found: Sensitivity | None = None,
    layers: dict[str, dict[Choice, float]] | None = None,
) -> Menu:
    """Every choice of every unit with what is known about it."""
    return {
        unit.path: {
            choice: Option(
                found.of(unit.path, choice) if found else (),
                unit.bytes_at(choice),
                layers[unit.path][timed_as(choice)] if layers else 0.0,
            )
            for choice in choices
        }
        for unit, choices in offered.items()
    }


def _tuned(
    prepared: PreparedUNet,
    units: list[Unit],
    menu: Menu,
    choices: Choices,
    besides: int,
    seconds: float | None = None,
    configured_seconds: float | None = None,
) -> Tuned:
    size = besides + sum(menu[path][choice].bytes for path, choice in choices.items())
    config = with_choices(prepared.qconfig, units, choices)
    return Tuned(config, choices, menu, predicted_sqnr_db(menu, choices), size, seconds, configured_seconds)
