"""Which row of a per-timestep table a denoising step reads."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qdiff_fx.kernels import checks
from qdiff_fx.kernels.registration import register_composite
from qdiff_fx.quant import timestep_bins

SCHEMA = "(Tensor timestep, int bins, int num_train_timesteps, float start=0.0, float stop=0.0) -> Tensor"
MOST_TIMESTEPS = 1 << 31


def reference(timestep: Tensor, bins: int, num_train_timesteps: int, start: float = 0.0, stop: float = 0.0) -> Tensor:
    """Bin of the batch's first timestep, as `quant.timestep_bins` counts them.

    Args:
        timestep: [batch] or scalar, integer or floating; a sampler gives the whole batch one timestep.
        bins: rows of the table, at least 1.
        num_train_timesteps: the scheduler's number of training timesteps, at least 1.
        start, stop: the range that timesteps lie in instead; the same where there is none.

    Returns:
        int64 [1].

    Raises:
        KernelError: bins or num_train_timesteps below 1, a range that is none, or no timestep.
    """
    op = "timestep_bin"
    if timestep is None:  # the schema lets it through
        raise checks.error(op, "a tensor is missing")
    checks.plain(op, [timestep])
    for what, number in (("bins", bins), ("num_train_timesteps", num_train_timesteps)):
        checks.within(op, what, number, 1, MOST_TIMESTEPS)
    if not (math.isfinite(start) and math.isfinite(stop) and start <= stop):
        raise checks.error(op, f"timesteps cannot lie in [{start}, {stop}]")
    if timestep.numel() == 0 or timestep.dtype == torch.bool:
        raise checks.error(op, f"expected timesteps, not {timestep.dtype} {tuple(timestep.shape)}")
    return timestep_bins.timestep_bin(timestep.reshape(-1)[:1], bins, num_train_timesteps, start, stop)


timestep_bin = register_composite("timestep_bin", SCHEMA, reference)
