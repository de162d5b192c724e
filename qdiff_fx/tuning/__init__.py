"""Mixed precision: how sensitive each layer is, and which bits it gets under a budget of size or of latency."""

from qdiff_fx.tuning.allocate import Budget
from qdiff_fx.tuning.choice import FLOAT, Choice
from qdiff_fx.tuning.run import Tuned, share_sensitivity, tune
from qdiff_fx.tuning.sensitivity import Sensitivity
from qdiff_fx.tuning.units import DEFAULT_BITS

__all__ = ["DEFAULT_BITS", "FLOAT", "Budget", "Choice", "Sensitivity", "Tuned", "share_sensitivity", "tune"]
