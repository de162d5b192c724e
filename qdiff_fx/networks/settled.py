"""What is settled about a quantized component when diffusers loads it: its bits, and the processor it runs on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from qdiff_fx.errors import ConfigError


def check_settled(name: str | os.PathLike[str], quantization_config: object, device_map: Any = None) -> None:
    """Raises ConfigError where it would be quantized twice, or is to be somewhere else.

    Args:
        name: what is loaded.
        quantization_config, device_map: as `from_pretrained` of diffusers takes them.
    """
    if quantization_config is not None:
        raise ConfigError("it is quantized already", where=str(name), fix="Leave its quantization_config out")
    places = device_map.values() if isinstance(device_map, Mapping) else [device_map]
    if elsewhere := [each for each in places if each is not None and str(each) != "cpu"]:
        raise ConfigError(f"it cannot be put on {elsewhere[0]!r}", where="device_map", fix="Leave it out, or say cpu")
