"""Which row of a per-timestep table a denoising step reads."""

from __future__ import annotations

from torch import Tensor

from qdiff_fx.errors import KernelError
from qdiff_fx.quant import timestep_bins


def timestep_bin(timestep: Tensor, bins: int, num_train_timesteps: int) -> Tensor:
    """Bin of the batch's first timestep, as `quant.timestep_bins` counts them.

    Args:
        timestep: [batch] or scalar, integer or floating; a sampler gives the whole batch one timestep.
        bins: rows of the table, at least 1.
        num_train_timesteps: the scheduler's number of training timesteps, at least 1.

    Returns:
        int64 [1].

    Raises:
        KernelError: bins or num_train_timesteps below 1.
    """
    if bins < 1 or num_train_timesteps < 1:
        what = f"bins and num_train_timesteps must be at least 1, not {bins} and {num_train_timesteps}"
        raise KernelError(what, where="timestep_bin")
    return timestep_bins.timestep_bin(timestep.reshape(-1)[:1], bins, num_train_timesteps)
