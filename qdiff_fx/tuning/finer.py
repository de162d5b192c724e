"""More bits for the few layers that most of a network's error comes from, within a small limit.

Where the error is seen as it is, as of a decoder, some layers matter a hundred times as much as others. Which ones is
measured on what the network was calibrated on, not known by their names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch

from qdiff_fx.calibration import CalibrationData
from qdiff_fx.errors import ConfigError
from qdiff_fx.networks import PreparedUNet
from qdiff_fx.progress import Progress, phase
from qdiff_fx.quant.qparams import WEIGHT_BITS
from qdiff_fx.tuning.allocate import Budget, Choices, Menu, Option, allocate, total_noise
from qdiff_fx.tuning.choice import Choice
from qdiff_fx.tuning.layer_substitution import LayerSubstitution
from qdiff_fx.tuning.predicted import Predicted, predicted
from qdiff_fx.tuning.squares import squares_of
from qdiff_fx.tuning.units import Unit, units_of

SQUARES, SIDE = 8, 16
"""Of the images calibrated on: what is looked at."""
PASSES = 6.0
"""Of the float network, that a square takes as long as: one forwards for its values, one forwards and backwards, and
every layer twice, with what quantizes its inputs and its weights."""
LEAST = 0.01
"""Of all the noise: what a layer's finer bits take away at least, or it does not get them."""
MOST_BITS = max(WEIGHT_BITS)


@dataclass(frozen=True)
class Limits:
    """What finer bits may add to a network.

    Attributes:
        bytes: of what its weights take as configured, a share.
        work: of its multiplications, a share.
    """

    bytes: float = 0.1
    work: float = 0.05

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value >= 0:
                raise ConfigError(f"{value} is no share", where=f"limit of {name}", fix="Give 0 or more")


@torch.inference_mode(False)
def finer(
    prepared: PreparedUNet,
    batches: Iterable[Mapping[str, Any]],
    limits: Limits | None = None,
    *,
    progress: bool | Progress = False,
) -> PreparedUNet:
    """The network with more bits of weights, and inputs of 16 bits, where they take away most noise for what they cost.

    No layer gets fewer bits than it has.

    Args:
        prepared: a calibrated network that takes images alone, as decoders do; it is not changed.
        batches: what it was calibrated on.
        limits: the usual ones by default.
        progress: show a bar, or report to this.
    Returns:
        one that shares its observers, with a rule more for every layer that was chosen; itself, if none was.
    Raises:
        ConfigError: it takes more than images.
        CalibrationError: there are no batches, or it was not calibrated.
    """
    units = {unit.path: unit for unit in units_of(prepared.graph_module)}
    squares = squares_of(prepared, batches, count=SQUARES, side=SIDE)
    substitution = LayerSubstitution(prepared)
    found: list[dict[str, Predicted]] = []
    with phase(progress, "choosing bits", len(squares), "square") as shown:
        for tensors in squares:
            found.append(predicted(substitution, list(units.values()), tensors))
            shown.advance()
    choices = chosen({path: units[path] for path in found[0]}, found, limits or Limits())
    if not choices:
        return prepared
    rules = (units[path].rule(choice) for path, choice in choices.items())
    return prepared.with_config(replace(prepared.qconfig, rules=(*prepared.qconfig.rules, *rules)))


def finer_passes(prepared: PreparedUNet, batches: CalibrationData) -> float:
    """How many passes of one recorded image through the float network `finer` takes as long as."""
    ((square,),) = squares_of(prepared, batches, count=1, side=SIDE)
    whole = prepared.signature.bind((), batches[0]).tensors[0]
    return PASSES * SQUARES * square[0].numel() / whole[0].numel()


def chosen(units: Mapping[str, Unit], found: list[dict[str, Predicted]], limits: Limits) -> dict[str, Choice]:
    """The units that get more than they have as configured, and what.

    Args:
        units: by path.
        found: of every batch, what is known of each of them.
    """
    menu = {path: {choice: _option(unit, choice, found) for choice in _choices(unit)} for path, unit in units.items()}
    configured = {path: unit.configured for path, unit in units.items()}
    own = [menu[path][choice] for path, choice in configured.items()]
    budget = Budget(
        bytes=int(sum(each.bytes for each in own) * (1 + limits.bytes)),
        seconds=sum(each.seconds for each in own) * (1 + limits.work),
    )
    best = allocate(menu, budget)
    return {path: choice for path, choice in best.items() if _gain(menu, configured, path, choice) > LEAST}


def _choices(unit: Unit) -> tuple[Choice, ...]:
    return unit.choices(tuple(range(unit.configured.weight_bits, MOST_BITS + 1)), allow_float=False, allow_wide=True)


def _option(unit: Unit, choice: Choice, found: list[dict[str, Predicted]]) -> Option:
    """What a choice of a unit adds; the program's seconds are multiplications here."""
    of_unit = [each[unit.path] for each in found]
    return Option(
        tuple(each.noise(choice) for each in of_unit),
        unit.bytes_at(choice),
        fmean(each.cost(choice) for each in of_unit),
    )


def _gain(menu: Menu, configured: Choices, path: str, choice: Choice) -> float:
    """The share of the network's noise as configured that a unit's choice takes away."""
    before, after = menu[path][configured[path]].noise, menu[path][choice].noise
    shares = zip(before, after, total_noise(menu, configured), strict=True)
    return fmean((was - now) / max(total, 1e-30) for was, now, total in shares)
