"""Custom operators: integer attention and the timestep lookup. Importing this registers them in `qdiff`.

It also registers torch's own quantize and dequantize operators, which q/dq graphs are written in.
"""

from qdiff_fx.kernels import ops, quantized_decomposed  # noqa: F401
from qdiff_fx.kernels.dispatch import Status, status
from qdiff_fx.kernels.ops.int_attention import int_attention, int_attention_vnni
from qdiff_fx.kernels.ops.timestep_bin import timestep_bin

__all__ = ["Status", "int_attention", "int_attention_vnni", "status", "timestep_bin"]
