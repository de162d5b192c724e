"""What reconstruction did to each unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class UnitReport:
    """One unit in one pass.

    Attributes:
        path: module path of the block or layer.
        before, after: its loss with rounded weights and with what was kept; see `ReconstructionConfig.objective`.
        fell_back: why something learned was not kept ("the rounding diverged"); empty where all of it was.
        resumed: it was read from a checkpoint.
    """

    path: str
    before: float
    after: float
    fell_back: str = ""
    resumed: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Reconstruction:
    """The units in execution order; with separate passes for weights and activations, one pass after the other.

    Attributes:
        samples: calibration samples that were used.
    """

    units: tuple[UnitReport, ...]
    samples: int

    @property
    def fallbacks(self) -> tuple[UnitReport, ...]:
        """Units that kept what they had before learning."""
        return tuple(unit for unit in self.units if unit.fell_back)

    def __str__(self) -> str:
        return "\n".join(_lines(self.units))


def _lines(units: Sequence[UnitReport]) -> list[str]:
    width = max((len(unit.path) for unit in units), default=0)
    return [
        f"{unit.path:{width}}  {unit.before:9.3g} -> {unit.after:9.3g}{f'  {unit.fell_back}' * bool(unit.fell_back)}"
        for unit in units
    ]
