"""What can be chosen for a unit."""

from __future__ import annotations

from dataclasses import dataclass

from qdiff_fx.quant.qparams import SIXTEEN_BITS

_FLOAT = "float"
_WIDE = f"a{SIXTEEN_BITS}"


@dataclass(frozen=True, order=True)
class Choice:
    """How the layers of a unit compute.

    Attributes:
        weight_bits: of their weights; 0 leaves them in float.
        wide: their inputs have 16 bits, in two codes, whatever the configuration says.
    """

    weight_bits: int
    wide: bool = False

    def __str__(self) -> str:
        """``float``, ``8``, or ``8a16`` with a 16-bit input."""
        return _FLOAT if self == FLOAT else f"{self.weight_bits}{_WIDE if self.wide else ''}"

    @staticmethod
    def parse(text: str) -> Choice:
        """The choice of that name; raises ValueError where there is none."""
        if text == _FLOAT:
            return FLOAT
        return Choice(int(text.removesuffix(_WIDE)), text.endswith(_WIDE))


FLOAT = Choice(0)
"""The choice of a unit that stays in float."""
AS_CONFIGURED = Choice(8)
"""The choice of a unit without weights (attention) that is quantized."""
