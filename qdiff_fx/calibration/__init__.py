"""Calibration: record what a sampler feeds the network along the trajectory, then show it to a prepared network."""

from __future__ import annotations

from qdiff_fx.calibration.collect import collect_calibration_data
from qdiff_fx.calibration.data import Batch, CalibrationData
from qdiff_fx.calibration.run import calibrate

__all__ = ["Batch", "CalibrationData", "calibrate", "collect_calibration_data"]
