"""Watch the calls a network gets while somebody else's loop drives it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from qdiff_fx.errors import CalibrationError
from qdiff_fx.sampling.prediction import prediction_of
from qdiff_fx.sampling.trajectory import Step, Trajectory
from qdiff_fx.signature.roles import positional_names, sample_argument, timestep_argument, timestep_of_call

NOT_INPUTS = ("return_dict",)


@dataclass(frozen=True)
class Call:
    """One call: its arguments by the names ``forward`` gives them, the prediction, and which argument is the timestep.

    That is empty where nobody asked the network.
    """

    inputs: dict[str, Any]
    prediction: Tensor
    timestep: str = ""


@contextmanager
def watching(
    unet: nn.Module,
    *,
    before: Callable[[dict[str, Any]], None] | None = None,
    after: Callable[[dict[str, Any], Any], None] | None = None,
) -> Iterator[None]:
    """Inside the block, `before(inputs)` and `after(inputs, output)` every call of the network.

    Inputs are the arguments by name, without what says nothing about the computation.

    Raises:
        CalibrationError: a call passes more arguments by position than the network has names for.
    """
    names, handles = positional_names(unet), []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if before is not None:
            before(_named(unet, names, args, kwargs))

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if after is not None:
            after(_named(unet, names, args, kwargs), output)

    try:
        handles.append(unet.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(unet.register_forward_hook(leave, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def recording(unet: nn.Module) -> Iterator[list[Call]]:
    """Every call made to ``unet`` inside the ``with`` block, in order."""
    calls: list[Call] = []

    def keep(inputs: dict[str, Any], output: Any) -> None:
        calls.append(Call(inputs, prediction_of(output), timestep_of_call(unet, inputs) or ""))

    with watching(unet, after=keep):
        yield calls


def as_trajectory(calls: Sequence[Call], final: Tensor) -> Trajectory:
    """A recorded sampler run as a `Trajectory`."""
    inputs = calls[0].inputs
    sample, timestep = sample_argument(inputs), calls[0].timestep or timestep_argument(inputs)
    if sample is None or timestep is None:
        raise CalibrationError(
            f"none of its arguments {list(inputs)} is a timestep", where="network", fix="Name it timestep or t"
        )
    steps = [Step(call.inputs[sample], call.inputs[timestep], call.prediction) for call in calls]
    conditioning = {name: value for name, value in inputs.items() if name not in (sample, timestep)}
    return Trajectory(steps, final, conditioning, (sample, timestep))


def _named(unet: nn.Module, names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    if len(args) > len(names):
        raise CalibrationError(
            f"the sampler passes {len(args)} positional arguments, names are known for {list(names)}",
            where=type(unet).__name__,
        )
    arguments = {**dict(zip(names, args, strict=False)), **kwargs}
    return {name: value for name, value in arguments.items() if name not in NOT_INPUTS}
