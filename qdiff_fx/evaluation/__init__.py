"""How close a quantized network stays to its float original: step by step, at the end, in distribution."""

from qdiff_fx.evaluation.fidelity import eps_sqnr, images_psnr_db, psnr_db, sqnr_db
from qdiff_fx.evaluation.frechet import frechet_distance
from qdiff_fx.sampling import Step, Trajectory, generate, predict, trajectory

__all__ = [
    "Step",
    "Trajectory",
    "eps_sqnr",
    "frechet_distance",
    "generate",
    "images_psnr_db",
    "predict",
    "psnr_db",
    "sqnr_db",
    "trajectory",
]
