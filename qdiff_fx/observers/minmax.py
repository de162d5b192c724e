"""The exact range per timestep and nothing else."""

from __future__ import annotations

from qdiff_fx.observers.base import Observer


class MinMaxObserver(Observer):
    """Cheap observer for tensors whose distribution nobody asks for, such as layer outputs.

    Its statistics have an empty histogram: they serve the "minmax" and "moving_average" ranges only.
    """

    kind = "minmax"

    def __init__(self, timestep_bins: int, num_train_timesteps: int, *, name: str = ""):
        super().__init__(timestep_bins, num_train_timesteps, 0, name=name)
