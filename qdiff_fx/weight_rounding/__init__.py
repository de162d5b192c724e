"""Weight rounding that looks at what the layer's output becomes, without gradients."""

from qdiff_fx.weight_rounding.loop import RoundingReport, round_weights

__all__ = ["RoundingReport", "round_weights"]
