"""Quantize diffusion UNets: capture, split shortcuts, calibrate per timestep, run on integer kernels.

Each public name is imported when it is first used: importing the package costs next to nothing. diffusers, imported
before or after, loads and saves quantized networks from then on.
"""

import importlib
from typing import TYPE_CHECKING, Any

from qdiff_fx.integrations.registration import install

if TYPE_CHECKING:
    from qdiff_fx.api import convert_qdiff, load_prepared, load_qdiff, prepare_qdiff, save_prepared, save_qdiff
    from qdiff_fx.calibration import CalibrationData, calibrate, collect_calibration_data
    from qdiff_fx.config import QDiffConfig, Rule
    from qdiff_fx.errors import FixedSizeWarning, QDiffError
    from qdiff_fx.export import export_qdiff
    from qdiff_fx.integrations.hub import push_to_hub
    from qdiff_fx.networks import PreparedUNet, QuantizedUNet, merge_prepared
    from qdiff_fx.reconstruction import Reconstruction, ReconstructionConfig, reconstruct
    from qdiff_fx.sampling.guidance_until import guidance_until
    from qdiff_fx.schedules import Schedule, optimize_schedule, with_schedule
    from qdiff_fx.tuning import Tuned, tune
    from qdiff_fx.weight_rounding import round_weights
    from qdiff_fx.workflow.by_hand import calibrating
    from qdiff_fx.workflow.one_call import quantize

__version__ = "0.1.0"

__all__ = [
    "CalibrationData",
    "FixedSizeWarning",
    "PreparedUNet",
    "QDiffConfig",
    "QDiffError",
    "QuantizedUNet",
    "Rule",
    "Reconstruction",
    "ReconstructionConfig",
    "Schedule",
    "Tuned",
    "calibrate",
    "calibrating",
    "collect_calibration_data",
    "convert_qdiff",
    "export_qdiff",
    "guidance_until",
    "load_prepared",
    "load_qdiff",
    "merge_prepared",
    "optimize_schedule",
    "prepare_qdiff",
    "push_to_hub",
    "quantize",
    "reconstruct",
    "round_weights",
    "save_prepared",
    "save_qdiff",
    "tune",
    "with_schedule",
]

_HOMES = {
    "api": ("convert_qdiff", "load_prepared", "load_qdiff", "prepare_qdiff", "save_prepared", "save_qdiff"),
    "calibration": ("CalibrationData", "calibrate", "collect_calibration_data"),
    "config": ("QDiffConfig", "Rule"),
    "export": ("export_qdiff",),
    "errors": ("FixedSizeWarning", "QDiffError"),
    "integrations.hub": ("push_to_hub",),
    "networks": ("PreparedUNet", "QuantizedUNet", "merge_prepared"),
    "reconstruction": ("Reconstruction", "ReconstructionConfig", "reconstruct"),
    "sampling.guidance_until": ("guidance_until",),
    "schedules": ("Schedule", "optimize_schedule", "with_schedule"),
    "tuning": ("Tuned", "tune"),
    "weight_rounding": ("round_weights",),
    "workflow.by_hand": ("calibrating",),
    "workflow.one_call": ("quantize",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
# What diffusers looks for here when it loads a pipeline that was saved, or somebody who puts one into another.
_COMPONENTS = {
    "DigitEmbedding": "bundled.modules",
    "QuantizedAutoencoderKL": "networks.autoencoder",
    "QuantizedAutoencoderTiny": "networks.autoencoder",
    "QuantizedControlNetModel": "networks.controlnet",
    "QuantizedMultiControlNetModel": "networks.controlnet",
}


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name) or _COMPONENTS.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


install()
