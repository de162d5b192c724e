"""Running a network along a denoising trajectory, and watching it there."""

from qdiff_fx.sampling.loop import generate, trajectory
from qdiff_fx.sampling.prediction import predict, prediction_of
from qdiff_fx.sampling.recorder import recording
from qdiff_fx.sampling.trajectory import Step, Trajectory

__all__ = ["Step", "Trajectory", "generate", "predict", "prediction_of", "recording", "trajectory"]
