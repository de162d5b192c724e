"""Block reconstruction: AdaRound for weights, LSQ for step sizes, unit by unit (Q-Diffusion, section 4.3)."""

from qdiff_fx.reconstruction.config import PRESETS, ReconstructionConfig
from qdiff_fx.reconstruction.loop import reconstruct
from qdiff_fx.reconstruction.report import Reconstruction, UnitReport

__all__ = ["PRESETS", "Reconstruction", "ReconstructionConfig", "UnitReport", "reconstruct"]
