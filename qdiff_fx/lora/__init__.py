"""LoRA beside a network that is quantized already: what files hold, and which of them are on."""

from qdiff_fx.lora.adapter import Adapter, read_adapter
from qdiff_fx.lora.adapters import Adapters

__all__ = ["Adapter", "Adapters", "read_adapter"]
