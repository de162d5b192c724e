"""Custom operators: integer attention and the timestep lookup. Importing this registers them in `qdiff`."""

from qdiff_fx.kernels.build import Status, status
from qdiff_fx.kernels.library import int_attention, int_attention_vnni, timestep_bin

__all__ = ["Status", "int_attention", "int_attention_vnni", "status", "timestep_bin"]
