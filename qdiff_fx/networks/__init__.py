"""The two networks a user holds: prepared (it watches) and quantized (it runs on integers)."""

from __future__ import annotations

from qdiff_fx.networks.prepared import PreparedUNet, _read_prepared, merge_prepared
from qdiff_fx.networks.quantized import QuantizedUNet, _read_quantized

# Pickles of version 0.1 name the two readers here.
__all__ = ["PreparedUNet", "QuantizedUNet", "_read_prepared", "_read_quantized", "merge_prepared"]
