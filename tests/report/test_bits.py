"""How many bits a network has, in words; what they are counted from is tested where they are chosen."""

from __future__ import annotations

from qdiff_fx.report.bits import Bits


def test_bits_in_words() -> None:
    assert str(Bits(4.368, 2)) == "4.37 bits a weight, 2 layers read 16 bits"
    assert str(Bits(8.0, 1)) == "8.00 bits a weight, 1 layer reads 16 bits"
