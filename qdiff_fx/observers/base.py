"""What every observer shares: which sample belongs to which timestep bin, the buffers, merging."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from qdiff_fx.errors import CalibrationError, ConfigError
from qdiff_fx.observers.statistics import SMALLEST_EXPONENT, Statistics, merge_statistics
from qdiff_fx.quant.timestep_bins import TimestepBins

_RECORD = ("min_val", "max_val", "hist", "exponent", "count")  # the buffers of every observer: `Statistics`
MAX_HISTOGRAM_BINS = 1 << 15  # bin numbers are counted as int16


class Observer(nn.Module):
    """Identity in `x` that records its range separately for every part of the denoising schedule.

    `forward(x, timestep) -> x`. A subclass sets `kind`, and may override `record` to look at more than the range, and
    `merge_record` and `statistics` where it keeps more. All state is in buffers, registered from the start. Set
    `enabled = False` to stop recording, `name` to say in errors where in the network it sits.

    Args:
        timestep_bins: T, the parts of the schedule, see `TimestepBins`.
        num_train_timesteps: length of the training schedule.
        histogram_bins: N, a power of two up to 32768, or 0 for no histogram.
    Raises:
        ConfigError: bin numbers that make no sense.
    """

    kind: ClassVar[str] = ""
    _is_impure = True  # fx: recording is a side effect, do not eliminate the call as dead code

    min_val: Tensor
    max_val: Tensor
    hist: Tensor
    exponent: Tensor
    count: Tensor

    def __init__(self, timestep_bins: int, num_train_timesteps: int, histogram_bins: int, *, name: str = ""):
        super().__init__()
        self.schedule = TimestepBins(num_train_timesteps, timestep_bins)
        if histogram_bins and not (2 <= histogram_bins <= MAX_HISTOGRAM_BINS and histogram_bins.bit_count() == 1):
            raise ConfigError(
                f"{histogram_bins} bins cannot be halved exactly",
                where="histogram_bins",
                fix=f"Use a power of two up to {MAX_HISTOGRAM_BINS}",
            )
        self.histogram_bins, self.name, self.enabled = histogram_bins, name, True
        self.register_buffer("min_val", torch.full((timestep_bins,), torch.inf, dtype=torch.float32))
        self.register_buffer("max_val", torch.full((timestep_bins,), -torch.inf, dtype=torch.float32))
        # 2^31 occurrences of one value are reached within one Stable Diffusion calibration: int64.
        self.register_buffer("hist", torch.zeros(timestep_bins, histogram_bins, dtype=torch.int64))
        self.register_buffer("exponent", torch.full((timestep_bins,), SMALLEST_EXPONENT, dtype=torch.int64))
        self.register_buffer("count", torch.zeros(timestep_bins, dtype=torch.int64))

    @property
    def empty(self) -> bool:
        """Whether it has seen nothing yet: its `schedule` may still be replaced by one of as many bins."""
        return not bool(self.count.any())

    @property
    def timestep_bins(self) -> int:
        return self.schedule.bins

    @property
    def num_train_timesteps(self) -> int:
        return self.schedule.num_train_timesteps

    def forward(self, x: Tensor, timestep: Tensor | float) -> Tensor:
        """Return x; while enabled, record each sample under its timestep.

        Args:
            x: [R, ...]. R is the batch B, or a multiple of it (attention heads folded in: sample-major). With any
                other R, x is taken to belong to every sample.
            timestep: [B], or one value for all.
        Raises:
            CalibrationError: x holds NaN or infinity, or a timestep lies outside the schedule.
        """
        if self.enabled and x.numel():
            rows = x.detach().reshape(x.shape[0] if x.dim() else 1, -1).to(torch.float32)
            for index, part in _split_by_bin(rows, self._bins_of(timestep)):
                self._record_range(index, part)
        return x

    def record(self, index: int, rows: Tensor, lo: float, hi: float) -> None:
        """Hook: note more about rows, float32 [R, K] in timestep bin `index`, whose exact range is lo..hi."""

    def statistics(self) -> Statistics:
        """A copy of everything seen so far."""
        return Statistics(**{name: getattr(self, name).clone() for name in _RECORD}, name=self.name)

    def merge(self, other: Self) -> Self:
        """Add what `other` saw, as if this observer had seen it itself (exactly, in any order).

        Raises:
            CalibrationError: the other one has a different schedule or different bins.
        """
        if other.num_train_timesteps != self.num_train_timesteps:
            raise CalibrationError(
                f"schedules of {self.num_train_timesteps} and {other.num_train_timesteps} timesteps cannot be merged",
                where=self.name,
            )
        if other.schedule.span != self.schedule.span:
            raise CalibrationError(
                f"records over {self.schedule} and {other.schedule} cannot be merged",
                where=self.name,
                fix="Set timestep_range in the configuration before calibrating",
            )
        merged = merge_statistics(self.statistics(), other.statistics())
        for name in _RECORD:
            getattr(self, name).copy_(getattr(merged, name))
        self.merge_record(other)
        return self

    def merge_record(self, other: Self) -> None:
        """Hook: add to the buffers of one's own what those of `other` hold, exactly, in any order."""

    def extra_repr(self) -> str:
        return f"{self.name!r}, timestep_bins={self.timestep_bins}, num_train_timesteps={self.num_train_timesteps}"

    def _bins_of(self, timestep: Tensor | float) -> list[int]:
        timesteps = torch.as_tensor(timestep).reshape(-1)
        outside = self.schedule.outside(timesteps)
        if outside is not None:
            raise CalibrationError(
                f"timestep {outside} is outside {self.schedule}",
                where=self.name,
                fix="Set num_train_timesteps to the length of the schedule that the timesteps come from, or "
                "timestep_range to what they lie in; calibrate() finds it out",
            )
        bins: list[int] = self.schedule.bin_of(timesteps).tolist()
        return bins

    def _record_range(self, index: int, rows: Tensor) -> None:
        lo, hi = (float(end) for end in rows.aminmax())
        if not (math.isfinite(lo) and math.isfinite(hi)):  # aminmax propagates NaN
            raise CalibrationError(
                f"the activation holds NaN or infinity (min {lo}, max {hi})",
                where=self.name,
                fix="Run the float network on the same input: it overflows there too, or the input is not finite",
            )
        self.min_val[index].clamp_(max=lo)
        self.max_val[index].clamp_(min=hi)
        self.count[index] += rows.numel()
        self.record(index, rows, lo, hi)


def merge(a: Observer, b: Observer) -> Observer:
    """A new observer that knows what a and b saw; both are left as they are."""
    return copy.deepcopy(a).merge(b)


def _split_by_bin(rows: Tensor, bins: list[int]) -> Iterator[tuple[int, Tensor]]:
    """Rows [R, K] of samples in the given timestep bins [B] -> (bin, its rows)."""
    present = sorted(set(bins))
    if len(present) == 1:
        yield present[0], rows
        return
    repeats, remainder = divmod(rows.shape[0], len(bins))
    if remainder or not repeats:
        yield from ((index, rows) for index in present)
        return
    owner = torch.tensor(bins, device=rows.device).repeat_interleave(repeats)
    for index in present:
        yield index, rows[owner == index]
