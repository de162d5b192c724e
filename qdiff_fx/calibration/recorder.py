"""A forward hook that keeps what a sampler feeds the network at every c-th step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qdiff_fx.calibration.data import CalibrationData, as_record
from qdiff_fx.errors import CalibrationError

DIFFUSERS_ARGUMENTS = ("sample", "timestep", "encoder_hidden_states")
NOT_INPUTS = ("return_dict",)


class TrajectoryRecorder:
    """Records the calls of one trajectory.

    Of a trajectory of S calls it keeps those whose distance from the last is a multiple of `every`: uniform over
    the whole trajectory, and the last step, where activation ranges change most, is always among them.

    Args:
        unet: the network to watch.
        count_steps: gives S; called during the first call, when the sampler has made its schedule.
        every: c of the paper.
        on_record: called with all records so far after each of them.
    """

    def __init__(
        self,
        unet: nn.Module,
        count_steps: Callable[[], int],
        every: int,
        on_record: Callable[[list[dict[str, Tensor]], int], None],
    ):
        self.unet, self.every = unet, every
        self.records: list[dict[str, Tensor]] = []
        self._names = _argument_names(unet)
        self._count_steps, self._on_record = count_steps, on_record
        self._calls = 0

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Watch the network inside the with block."""
        handle = self.unet.register_forward_pre_hook(self._hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        last = self._count_steps() - 1
        if (last - self._calls) % self.every == 0:
            self.records.append(self._record(args, kwargs))
            self._on_record(self.records, last // self.every + 1)
        self._calls += 1

    def _record(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        if len(args) > len(self._names):
            raise CalibrationError(
                f"the sampler passes {len(args)} positional arguments, names are known for {list(self._names)}",
                where=type(self.unet).__name__,
            )
        arguments = {**dict(zip(self._names, args, strict=False)), **kwargs}
        record = as_record({key: value for key, value in arguments.items() if key not in NOT_INPUTS})
        return {name: self._kept(name, tensor) for name, tensor in record.items()}

    def _kept(self, name: str, tensor: Tensor) -> Tensor:
        """A copy of the tensor, or the previous step's one if nothing changed: conditioning is stored once."""
        previous = self.records[-1].get(name) if self.records else None
        if previous is not None and previous.dtype == tensor.dtype and torch.equal(previous, tensor):
            return previous
        return tensor.clone()


def _argument_names(unet: nn.Module) -> tuple[str, ...]:
    """Names of the positional arguments; those of diffusers for a network that just takes *args."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(unet.forward).parameters.values()
    return tuple(p.name for p in parameters if p.kind in positional) or DIFFUSERS_ARGUMENTS


def recorded_bytes(records: list[dict[str, Tensor]], steps: int) -> int:
    """What `steps` records will take, judged by the first one or two: what the two share is shared by all."""
    first = CalibrationData(records[:1]).nbytes
    return first + (steps - 1) * (CalibrationData(records[:2]).nbytes - first)
