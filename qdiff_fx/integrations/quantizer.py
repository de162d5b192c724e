"""`QDiffConfig` as a `quantization_config` of diffusers."""

from __future__ import annotations

from diffusers.quantizers.base import DiffusersQuantizer


class QDiffQuantizer(DiffusersQuantizer):
    pass
