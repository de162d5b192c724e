"""How much noise each layer adds to the prediction when it alone is quantized.

The noise powers of single layers add up to that of the whole network, as far as their errors are uncorrelated. That is
what the allocation builds on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from qdiff_fx.atomic import write_text
from qdiff_fx.distributed import ALONE, Workers
from qdiff_fx.errors import ConfigError
from qdiff_fx.networks import PreparedUNet
from qdiff_fx.passes.quantize.insert_observers import OBSERVERS
from qdiff_fx.quant.digest import digest
from qdiff_fx.tuning.choice import FLOAT, Choice
from qdiff_fx.tuning.layer_substitution import LayerSubstitution
from qdiff_fx.tuning.units import Unit

SAVE_EVERY = 10.0  # seconds


@dataclass
class Sensitivity:
    """Relative noise power ``Σ (ε̂ − ε)² / Σ ε²`` of the prediction with one unit quantized and the rest in float.

    Attributes:
        key: what it was measured on: the configuration, the units, their choices, and digests of weights, calibration
            and inputs.
        timesteps: of the batches it is measured on.
        noise: for each of them, path → choice → noise; the last one may be unfinished.
    """

    key: dict[str, Any]
    timesteps: list[float]
    noise: list[dict[str, dict[Choice, float]]] = field(default_factory=list)

    def of(self, path: str, choice: Choice) -> tuple[float, ...]:
        """A unit's noise at a choice on each batch."""
        return tuple(batch[path][choice] for batch in self.noise)

    def save(self, file: Path) -> None:
        """Write it as JSON; a reader sees the old file or the new one."""
        write_text(file, json.dumps({"key": self.key, "timesteps": self.timesteps, "noise": self.to_json()}))

    def to_json(self) -> list[dict[str, dict[str, float]]]:
        """The noise."""
        return _to_json(self.noise)

    @staticmethod
    def load(file: Path, key: dict[str, Any], timesteps: list[float]) -> Sensitivity:
        """What was saved there, or an empty one where nothing was.

        Raises:
            ConfigError: the file is damaged, or was measured under another key or at other timesteps.
        """
        if not file.exists():
            return Sensitivity(key, timesteps)
        try:
            data = json.loads(file.read_text())
            found = Sensitivity(data["key"], list(data["timesteps"]), _from_json(data["noise"]))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"it is no sensitivity file ({error})", where=str(file), fix="Remove it to measure again"
            ) from error
        if (found.key, found.timesteps) != (json.loads(json.dumps(key)), timesteps):
            raise ConfigError(
                "it was measured on another network, configuration, choice of bits or timesteps "
                f"({', '.join(_differing(found, json.loads(json.dumps(key))) or ['timesteps'])})",
                where=str(file),
                fix="Name another file, or remove it to measure again",
            )
        return found


def measure(
    prepared: PreparedUNet,
    units: list[Unit],
    bits: tuple[int, ...],
    batches: list[tuple[float, list[Tensor]]],
    *,
    file: Path | None = None,
    progress: bool = False,
    workers: Workers = ALONE,
) -> Sensitivity:
    """The noise of every unit at every choice, batch by batch.

    Args:
        prepared: a calibrated network.
        batches: timestep and flat inputs of each; a batch holds one timestep only.
        file: keep what is measured here every few seconds, and go on from there.
        workers: processes that share the units; all get the same. The leading one keeps `file`.
    """
    timesteps = [timestep for timestep, _ in batches]
    measured = {unit.path: unit.choices(bits, allow_float=False, allow_wide=True) for unit in units}
    key = {
        "config": prepared.qconfig.to_json(),
        "units": [[unit.path, *unit.counts] for unit in units],
        "choices": [list(map(str, choices)) for choices in measured.values()],
        **_digests(prepared, batches),
    }
    with workers.together():
        file = file if workers.leads else None
        found = Sensitivity.load(file, key, timesteps) if file else Sensitivity(key, timesteps)
        found.noise = _from_json(workers.agreed(found.to_json()))
        found.noise += [{} for _ in batches[len(found.noise) :]]
        if sum(map(len, found.noise)) < len(units) * len(batches):
            _measure_rest(LayerSubstitution(prepared), units, measured, batches, found, file, progress, workers)
    return found


def _measure_rest(
    substitution: LayerSubstitution,
    units: list[Unit],
    choices: Mapping[str, tuple[Choice, ...]],
    batches: list[tuple[float, list[Tensor]]],
    found: Sensitivity,
    file: Path | None,
    progress: bool,
    workers: Workers,
) -> None:
    """What is missing, batch by batch: of each every process takes some units."""
    left = [[unit for unit in units if unit.path not in noise] for noise in found.noise]
    own = [workers.share(each) for each in left]
    saved = time.monotonic()
    with tqdm(total=sum(map(len, own)), desc="sensitivity", unit="layer", disable=not progress) as bar:
        for index, (_, tensors) in enumerate(batches):
            noise = found.noise[index]
            for path, values in _noise_of_batch(substitution, own[index], choices, tensors):
                noise[path] = values
                bar.update()
                if file and time.monotonic() - saved > SAVE_EVERY:
                    found.save(file)
                    saved = time.monotonic()
            if left[index]:
                merged = {path: row for report, _ in workers.gather(_to_json([noise])) for path, row in _only(report)}
                found.noise[index] = {unit.path: merged[unit.path] for unit in units}
    if file:
        found.save(file)


Noise = list[dict[str, dict[Choice, float]]]


def _to_json(noise: Noise) -> list[dict[str, dict[str, float]]]:
    return [{path: {str(c): v for c, v in row.items()} for path, row in each.items()} for each in noise]


def _from_json(noise: Any) -> Noise:
    return [{p: {Choice.parse(c): float(v) for c, v in row.items()} for p, row in each.items()} for each in noise]


def _only(report: Any) -> Iterable[tuple[str, dict[Choice, float]]]:
    """Of one batch."""
    (noise,) = _from_json(report)
    return noise.items()


def _digests(prepared: PreparedUNet, batches: list[tuple[float, list[Tensor]]]) -> dict[str, str]:
    """What tells this network's numbers and inputs from those of another that looks like it."""
    state = prepared.state_dict()
    seen = {name for name in state if name.endswith("_digest") or f".{OBSERVERS}." in name}
    return {
        "weights": digest(part for name in state if name not in seen for part in (name, state[name])),
        "calibration": digest(part for name in sorted(seen) for part in (name, state[name])),
        "inputs": digest(tensor for _, tensors in batches for tensor in tensors),
    }


def _differing(found: Sensitivity, key: Mapping[str, Any]) -> list[str]:
    return [name for name in key if not isinstance(found.key, dict) or found.key.get(name) != key[name]]


@torch.no_grad()
def _noise_of_batch(
    substitution: LayerSubstitution,
    units: Sequence[Unit],
    choices: Mapping[str, tuple[Choice, ...]],
    tensors: list[Tensor],
) -> Iterator[tuple[str, dict[Choice, float]]]:
    if not units:
        return
    run = substitution.on(tensors)
    signal = float(run.prediction.double().square().sum())
    for unit in units:
        noise = {FLOAT: 0.0}
        for choice in choices[unit.path]:
            error = run.with_quantized(unit, choice).double() - run.prediction.double()
            noise[choice] = float(error.square().sum()) / signal
        yield unit.path, noise
