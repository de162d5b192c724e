"""The drop-in call signature: Python arguments in, graph inputs out, and the result put back together."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from qdiff_fx.errors import InputError
from qdiff_fx.signature.inputs import (
    Constant,
    TensorInput,
    as_timestep,
    check_plain,
    check_tensors,
    dtype_from,
    dtype_name,
    flatten_arguments,
)
from qdiff_fx.signature.outputs import Structure, output_names, pack_output

RETURN_DICT = "return_dict"


@dataclass(frozen=True)
class Parameter:
    """One parameter of the network's forward; `default` is None when it is required or not a constant."""

    name: str
    required: bool
    keyword_only: bool = False
    default: Constant | None = None


def forward_parameters(forward: Callable[..., Any]) -> tuple[Parameter, ...]:
    """The parameters of a forward method, without self and without *args and **kwargs."""
    parameters = []
    for parameter in inspect.signature(forward).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = parameter.default if isinstance(parameter.default, Constant) else None
        parameters.append(
            Parameter(
                parameter.name,
                required=parameter.default is parameter.empty,
                keyword_only=parameter.kind is parameter.KEYWORD_ONLY,
                default=default,
            )
        )
    return tuple(parameters)


@dataclass(frozen=True)
class BoundCall:
    """One call, ready for the graph: its tensors in placeholder order, and how to return the result."""

    tensors: list[torch.Tensor]
    return_dict: bool


@dataclass(frozen=True)
class CallSignature:
    """How a call of the captured network maps to its graph; rebuilt from JSON without the network's class.

    parameters: of the original forward, in order. inputs: the graph's placeholders. constants: what every
    other argument was at capture, by dotted name. output: structure of the result. config: the network's own
    configuration. attributes: values that pipelines read from inside the network, by dotted path. batched_outputs:
    for each tensor of the result whether its first dimension is the batch; None in what the first release saved.
    called_in: another floating type that it is called in and answers in, where somebody moved it to one.
    """

    parameters: tuple[Parameter, ...]
    inputs: tuple[TensorInput, ...]
    constants: dict[str, Constant]
    output: Structure
    dtype: torch.dtype = torch.float32
    config: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    batched_outputs: tuple[bool, ...] | None = None
    called_in: torch.dtype | None = None

    @property
    def sample(self) -> TensorInput:
        """The image or latent."""
        return next(spec for spec in self.inputs if spec.role == "sample")

    @property
    def timestep(self) -> TensorInput | None:
        return next((spec for spec in self.inputs if spec.role == "timestep"), None)

    @property
    def fixed_sizes(self) -> dict[str, str]:
        """Which sizes could not be left open, by argument and dimension: {"x[2] = 16": why}."""
        return {
            f"{spec.name}[{position}] = {spec.dims[position]}": why
            for spec in self.inputs
            for position, why in spec.fixed
        }

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> BoundCall:
        """Check a call and flatten it.

        Raises CaptureMismatchError for sizes or a set of tensors that were not captured, InputError for a call
        that is wrong in any other way.
        """
        arguments = self.bind_arguments(args, kwargs)
        return_dict = arguments.pop(RETURN_DICT, None)
        if return_dict is None:
            return_dict = all(p.default is not False for p in self.parameters if p.name == RETURN_DICT)
        timestep = arguments.pop(self.timestep.name, None) if self.timestep else None
        tensors, constants = flatten_arguments(arguments)
        self._check_constants(constants, tensors)
        if self.timestep and timestep is not None:
            tensors[self.timestep.name] = self._timestep(timestep, tensors)
        return BoundCall(check_tensors(self.inputs, tensors, self._converted), bool(return_dict))

    @property
    def _converted(self) -> Collection[torch.dtype]:
        """Floating types that become the captured one: any under autocast, as any network would take them."""
        if torch.is_autocast_enabled("cpu"):
            return (torch.float32, torch.float16, torch.bfloat16)
        return () if self.called_in is None else (self.called_in,)

    def moved_to(self, dtype: torch.dtype) -> CallSignature:
        """The same network, called in another floating type; what it computes in stays as it was captured."""
        return replace(self, called_in=None if dtype == self.dtype else dtype)

    def bind_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments by name, defaults of constants filled in. Raises InputError like Python's TypeError."""
        positional = [p.name for p in self.parameters if not p.keyword_only]
        names = {p.name for p in self.parameters}
        if len(args) > len(positional):
            raise InputError(
                f"{len(args)} positional arguments, but the network takes {len(positional)}: {', '.join(positional)}"
            )
        given = dict(zip(positional, args, strict=False))
        if twice := [name for name in kwargs if name in given]:
            raise InputError("was given twice, by position and by name", where=f"argument '{twice[0]}'")
        if unknown := [name for name in kwargs if name not in names]:
            takes = f"It takes {', '.join(p.name for p in self.parameters)}"
            fix = takes if names else "Its forward has to name its arguments: *args cannot be told apart"
            raise InputError("the network has no such argument", where=f"argument '{unknown[0]}'", fix=fix)
        given |= kwargs
        if missing := [p.name for p in self.parameters if p.required and p.name not in given]:
            raise InputError(f"the call is missing {', '.join(missing)}")
        return {p.name: given.get(p.name, p.default) for p in self.parameters}

    def _timestep(self, value: Any, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        assert self.timestep is not None
        sample = tensors.get(self.sample.name)
        if sample is None:
            raise InputError(f"the call is missing {self.sample.name}")
        check_plain(self.sample.name, sample)  # it says where the timestep goes
        return as_timestep(value, self.timestep.name, self.timestep.dtype, sample.shape[0], sample.device)

    def _check_constants(self, given: Mapping[str, Constant], tensors: Mapping[str, torch.Tensor]) -> None:
        captured_tensors = {spec.name for spec in self.inputs}
        for name in {**self.constants, **given}:
            captured, value = self.constants.get(name), given.get(name)
            where = f"argument '{name}'"
            if name in captured_tensors:
                raise InputError(f"was a tensor when the network was captured, not {value!r}", where=where)
            if name in tensors:
                raise InputError(f"was {captured!r} when the network was captured, not a tensor", where=where)
            if captured != value:
                raise InputError(
                    f"was {captured!r} when the network was captured and cannot become {value!r}",
                    where=where,
                    fix=f"Pass {captured!r}, or capture again with {value!r} in the example inputs",
                )

    def pack(self, flat: Sequence[torch.Tensor], return_dict: bool = True) -> Any:
        """The graph's outputs as the network would have returned them."""
        if self.called_in is not None:
            flat = [each.to(self.called_in) if each.dtype == self.dtype else each for each in flat]
        return pack_output(flat, self.output, return_dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "parameters": [asdict(parameter) for parameter in self.parameters],
            "inputs": [spec.to_json() for spec in self.inputs],
            "constants": self.constants,
            "output": self.output,
            "dtype": dtype_name(self.dtype),
            "config": self.config,
            "attributes": self.attributes,
            **({} if self.batched_outputs is None else {"batched_outputs": list(self.batched_outputs)}),
            **({} if self.called_in is None else {"called_in": dtype_name(self.called_in)}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CallSignature:
        return cls(
            parameters=tuple(Parameter(**parameter) for parameter in data["parameters"]),
            inputs=tuple(TensorInput.from_json(spec) for spec in data["inputs"]),
            constants=dict(data["constants"]),
            output=data["output"],
            dtype=dtype_from(data["dtype"]),
            config=dict(data["config"]),
            attributes=dict(data["attributes"]),
            batched_outputs=_batched_outputs(data),
            called_in=dtype_from(data["called_in"]) if "called_in" in data else None,
        )


def _batched_outputs(data: Mapping[str, Any]) -> tuple[bool, ...] | None:
    if "batched_outputs" not in data:
        return None
    batched, names = tuple(map(bool, data["batched_outputs"])), output_names(data["output"])
    if len(batched) != len(names):
        raise ValueError(f"{len(batched)} batched_outputs for the {len(names)} tensors of the result")
    return batched
