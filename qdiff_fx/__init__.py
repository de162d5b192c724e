"""Quantize diffusion UNets: capture, split shortcuts, calibrate per timestep, run on integer kernels."""

from qdiff_fx.api import convert_qdiff, load_qdiff, prepare_qdiff, save_qdiff
from qdiff_fx.calibration import CalibrationData, calibrate, collect_calibration_data
from qdiff_fx.config import QDiffConfig, Rule
from qdiff_fx.errors import QDiffError
from qdiff_fx.networks import PreparedUNet, QuantizedUNet
from qdiff_fx.reconstruction import Reconstruction, ReconstructionConfig, reconstruct
from qdiff_fx.tuning import Tuned, tune
from qdiff_fx.weight_rounding import round_weights

__version__ = "0.1.0"

__all__ = [
    "CalibrationData",
    "PreparedUNet",
    "QDiffConfig",
    "QDiffError",
    "QuantizedUNet",
    "Rule",
    "Reconstruction",
    "ReconstructionConfig",
    "Tuned",
    "calibrate",
    "collect_calibration_data",
    "convert_qdiff",
    "load_qdiff",
    "prepare_qdiff",
    "reconstruct",
    "round_weights",
    "save_qdiff",
    "tune",
]
