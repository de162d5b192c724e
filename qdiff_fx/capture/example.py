"""The example inputs of a capture, sorted into tensors, constants, the sample and the timestep."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qdiff_fx.errors import CaptureError
from qdiff_fx.signature.call import RETURN_DICT, CallSignature, Parameter, forward_parameters
from qdiff_fx.signature.inputs import Constant, as_timestep, flatten_arguments
from qdiff_fx.signature.roles import timestep_argument

_EMBED_IN_ITS_TYPE = ("gen_r_embedding", "get_timestep_ratio_embedding")


@dataclass(frozen=True)
class Example:
    """A call to capture.

    arguments: for the network's forward, nested. tensors: the same, flat, by dotted name, in the order of
    forward's parameters, with the timestep as (batch,).
    """

    parameters: tuple[Parameter, ...]
    arguments: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    constants: dict[str, Constant]
    sample: str
    timestep: str | None

    @property
    def batch(self) -> int:
        return self.tensors[self.sample].shape[0]


def read_example(model: nn.Module, example_inputs: Mapping[str, Any]) -> Example:
    """Check `example_inputs` against the model's forward.

    Raises InputError when they do not fit it, CaptureError when they hold no sample.
    """
    parameters = _parameters(model, example_inputs)
    arguments = CallSignature(parameters, (), {}, {}).bind_arguments((), example_inputs)
    if RETURN_DICT in arguments:
        arguments[RETURN_DICT] = True
    timestep = timestep_argument(arguments, [p.name for p in parameters if p.required and not p.keyword_only])
    passed = {name: value for name, value in arguments.items() if name not in (timestep, RETURN_DICT)}
    tensors, constants = flatten_arguments(passed)
    if not tensors:
        raise CaptureError("there is no tensor among the example inputs", fix="Pass the sample to denoise")
    sample = next(iter(tensors))
    if tensors[sample].dim() == 0:
        raise CaptureError("is a single number", where=f"argument '{sample}'", fix="Pass a batch of samples")
    if empty := [name for name, tensor in tensors.items() if tensor.numel() == 0]:
        raise CaptureError("is empty", where=f"argument '{empty[0]}'", fix="Pass an example with numbers in it")
    if timestep is not None:
        dtype = _timestep_dtype(model, arguments[timestep])
        batch, device = tensors[sample].shape[0], tensors[sample].device
        tensors[timestep] = as_timestep(arguments[timestep], timestep, dtype, batch, device)
        order = list(arguments)
        tensors = dict(sorted(tensors.items(), key=lambda item: order.index(item[0].split(".")[0])))
    return Example(parameters, arguments, tensors, constants, sample, timestep)


def _parameters(model: nn.Module, example_inputs: Mapping[str, Any]) -> tuple[Parameter, ...]:
    """Of forward; where it takes **kwargs, the example's further names belong to them."""
    parameters = forward_parameters(model.forward)
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        return parameters
    known = {parameter.name for parameter in parameters}
    further = [name for name in example_inputs if name not in known]
    return parameters + tuple(Parameter(name, required=False, keyword_only=True) for name in further)


def _timestep_dtype(model: nn.Module, value: Any) -> torch.dtype:
    """float32 for diffusers, whose sinusoidal embedding takes any number; otherwise as in the example.

    Samplers of the Euler family pass fractional timesteps to networks trained on whole ones. Würstchen's networks go on
    in whatever type they are given.
    """
    config = getattr(model, "config", None)
    from_diffusers = any(base.__module__.startswith("diffusers.") for base in type(model).__mro__)
    as_given = any(hasattr(model, name) for name in _EMBED_IN_ITS_TYPE)
    if from_diffusers and not as_given and getattr(config, "time_embedding_type", None) != "learned":
        return torch.float32
    return value.dtype if isinstance(value, torch.Tensor) else torch.as_tensor(value).dtype
