"""The tensors a captured network takes: names, dtypes, and which of their sizes may change between calls."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from numbers import Real
from typing import Any

import torch

from qdiff_fx.errors import InputError

Constant = bool | int | float | str

BATCH = "batch"


class CaptureMismatchError(InputError):
    """A good call that this capture does not cover: other sizes, or another set of conditioning tensors."""


@dataclass(frozen=True)
class Size:
    """A size that may change between calls: `multiple` times the number called `symbol`.

    Equal symbols mean sizes that change together: a latent of (batch, 4, 8*height, 8*width) goes with a
    residual of (batch, 320, 4*height, 4*width).
    """

    symbol: str
    multiple: int = 1

    def __str__(self) -> str:
        return self.symbol if self.multiple == 1 else f"{self.multiple}*{self.symbol}"


@dataclass(frozen=True)
class TensorInput:
    """One placeholder of the graph.

    name: dotted place in the call, e.g. "added_cond_kwargs.time_ids". role: "sample", "timestep" or "". fixed:
    dimensions that could not be left open, and why.
    """

    name: str
    dtype: torch.dtype
    dims: tuple[int | Size, ...]
    role: str = ""
    fixed: tuple[tuple[int, str], ...] = ()

    @property
    def rows_per_sample(self) -> int:
        """1 of what has one row for each sample, more of frames, 0 of what has nothing to do with the batch."""
        first = self.dims[0] if self.dims else 0
        return first.multiple if isinstance(first, Size) and first.symbol == BATCH else 0

    def to_json(self) -> dict[str, Any]:
        dims = [[d.symbol, d.multiple] if isinstance(d, Size) else d for d in self.dims]
        found = {"name": self.name, "dtype": dtype_name(self.dtype), "dims": dims, "role": self.role}
        return found | ({"fixed": [list(each) for each in self.fixed]} if self.fixed else {})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TensorInput:
        dims = tuple(Size(*d) if isinstance(d, list) else int(d) for d in data["dims"])
        fixed = tuple((int(position), str(why)) for position, why in data.get("fixed", ()))
        return cls(data["name"], dtype_from(data["dtype"]), dims, data["role"], fixed)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def dtype_from(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} is not a torch dtype")
    return dtype


def flatten_arguments(
    arguments: Mapping[str, Any],
) -> tuple[dict[str, torch.Tensor], dict[str, Constant]]:
    """Tensors and constants of a call, by dotted name; None counts as absent.

    `{"cond": {"ids": t, "scale": 2.0}, "mask": None}` -> `{"cond.ids": t}`, `{"cond.scale": 2.0}`.
    Raises InputError for a value that is neither a tensor, a number, a string nor a container of these.
    """
    tensors: dict[str, torch.Tensor] = {}
    constants: dict[str, Constant] = {}
    for name, value in arguments.items():
        _flatten(name, value, tensors, constants)
    return tensors, constants


def _flatten(name: str, value: Any, tensors: dict[str, torch.Tensor], constants: dict[str, Constant]) -> None:
    if value is None:
        return
    if isinstance(value, torch.Tensor):
        tensors[name] = value
    elif isinstance(value, Constant):
        constants[name] = value
    elif isinstance(value, Mapping) or is_dataclass(value):
        entries = (
            value if isinstance(value, Mapping) else {each.name: getattr(value, each.name) for each in fields(value)}
        )
        for key, part in entries.items():
            _flatten(f"{name}.{key}", part, tensors, constants)
    elif isinstance(value, Sequence):
        for index, part in enumerate(value):
            _flatten(f"{name}.{index}", part, tensors, constants)
    else:
        raise InputError(
            f"cannot take {type(value).__name__!r}",
            where=f"argument '{name}'",
            fix="Pass tensors, numbers, strings, None, or dicts, dataclasses and sequences of these",
        )


def as_timestep(value: Any, name: str, dtype: torch.dtype, batch: int, device: torch.device) -> torch.Tensor:
    """A timestep given as number, 0-d or 1-d tensor -> tensor (batch,) of `dtype`.

    Raises InputError for another shape, or a fractional timestep where the network takes whole ones.
    """
    if isinstance(value, torch.Tensor):
        check_plain(name, value)
        kind = f"a {dtype_name(value.dtype)} tensor" if value.dtype == torch.bool or value.is_complex() else ""
    else:
        kind = f"a {type(value).__name__}" if isinstance(value, bool) or not isinstance(value, Real) else ""
    if kind:
        raise InputError(f"a timestep cannot be {kind}", where=f"argument '{name}'", fix="Pass a real number")
    timestep = torch.as_tensor(value, device=device)
    if timestep.numel() not in (1, batch) or timestep.dim() > 1:
        raise InputError(
            f"timestep of shape {tuple(timestep.shape)} with a batch of {batch}",
            where=f"argument '{name}'",
            fix=f"Pass a number, or a tensor of shape () or ({batch},)",
        )
    if timestep.is_floating_point() and not dtype.is_floating_point and bool((timestep % 1 != 0).any()):
        raise InputError(
            f"fractional timestep {timestep.flatten()[0].item():g}, but the network was captured with "
            f"{dtype_name(dtype)} timesteps",
            where=f"argument '{name}'",
            fix="Pass a whole number, or capture again with a float timestep in the example inputs",
        )
    converted = timestep.to(dtype)
    if not dtype.is_floating_point and bool((converted != timestep).any()):
        raise InputError(
            f"timestep {timestep[converted != timestep].flatten()[0].item():g} does not fit {dtype_name(dtype)}",
            where=f"argument '{name}'",
        )
    return converted.reshape(-1).expand(batch).contiguous()


def check_tensors(
    inputs: Sequence[TensorInput], tensors: Mapping[str, torch.Tensor], also: Collection[torch.dtype] = ()
) -> list[torch.Tensor]:
    """The tensors in placeholder order, checked against what was captured.

    Args:
        inputs: what was captured.
        tensors: of a call, by name.
        also: floating types that are converted to the captured one.

    Raises CaptureMismatchError for other sizes or another set of tensors, InputError for another dtype.
    """
    _check_names([spec.name for spec in inputs], list(tensors))
    ordered = [_as_captured(spec, tensors[spec.name], also) for spec in inputs]
    sizes: dict[str, tuple[int, str]] = {}
    for spec, tensor in zip(inputs, ordered, strict=True):
        _check_sizes(spec, tensor.shape, sizes)
    return ordered


def _check_names(captured: list[str], given: list[str]) -> None:
    missing = [name for name in captured if name not in given]
    extra = [name for name in given if name not in captured]
    if not missing and not extra:
        return
    differences = [f"is missing {', '.join(missing)}"] if missing else []
    differences += [f"was not captured with {', '.join(extra)}"] if extra else []
    raise CaptureMismatchError(
        f"the call {' and '.join(differences)}",
        fix=f"Pass exactly {', '.join(captured)}, or capture again with example inputs like this call",
    )


def _as_captured(spec: TensorInput, tensor: torch.Tensor, also: Collection[torch.dtype]) -> torch.Tensor:
    """The tensor in the captured dtype: integers of another width and what is in `also` are converted, else refused."""
    check_plain(spec.name, tensor)
    if tensor.dtype == spec.dtype:
        return tensor
    if _is_integer(tensor.dtype) and _is_integer(spec.dtype):
        return tensor.to(spec.dtype)
    if tensor.dtype in also and spec.dtype.is_floating_point:
        return tensor.to(spec.dtype)
    raise InputError(
        f"is {dtype_name(tensor.dtype)}, but the network was captured with {dtype_name(spec.dtype)}",
        where=f"argument '{spec.name}'",
        fix=f"Convert it with .to(torch.{dtype_name(spec.dtype)})",
    )


def check_plain(name: str, tensor: torch.Tensor) -> None:
    """Raises InputError for a tensor whose numbers do not lie one beside the other, or that has none."""
    meta = tensor.device.type == "meta"
    if meta or tensor.layout != torch.strided:
        kind = "on the meta device, without numbers" if meta else f"of layout {tensor.layout}"
        raise InputError(f"is {kind}", where=f"argument '{name}'", fix="Pass a dense tensor that holds its numbers")


def _is_integer(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


def _check_sizes(spec: TensorInput, shape: torch.Size, sizes: dict[str, tuple[int, str]]) -> None:
    """Match `shape` against the captured dims; `sizes` collects the value of each symbol and who set it."""
    if len(shape) != len(spec.dims):
        raise _other_rank(spec, shape)
    for position, (dim, actual) in enumerate(zip(spec.dims, shape, strict=True)):
        if isinstance(dim, int):
            if actual != dim:
                raise _other_fixed_size(spec, shape, position)
            continue
        value, rest = divmod(actual, dim.multiple)
        if rest or value < 1:
            raise _size_mismatch(spec, shape, f"{dim.symbol} {actual} is not a multiple of {dim.multiple}")
        known, setter = sizes.setdefault(dim.symbol, (value, spec.name))
        if known != value:
            fits = known * dim.multiple
            what = f"{dim.symbol} is {actual}, but {fits} goes with {setter}"
            raise _size_mismatch(spec, shape, what, _NOT_PER_SAMPLE if dim.symbol == BATCH else _ANEW)


_ANEW = "Pass a tensor of the captured sizes, or capture again with example inputs of this size"
_NOT_PER_SAMPLE = (
    "Pass one item for each sample. If its items have nothing to do with the samples, capture again with an example "
    "whose batch is another number than they are"
)


def _other_rank(spec: TensorInput, shape: torch.Size) -> CaptureMismatchError:
    batch_is_missing = len(shape) == len(spec.dims) - 1 and spec.rows_per_sample == 1
    fix = f"Add the batch dimension: {spec.name}[None]" if batch_is_missing else _ANEW
    return _size_mismatch(spec, shape, f"has {len(shape)} dimensions", fix)


def _other_fixed_size(spec: TensorInput, shape: torch.Size, position: int) -> CaptureMismatchError:
    what = f"has size {shape[position]} in dimension {position}"
    reason = dict(spec.fixed).get(position)
    return _size_mismatch(spec, shape, f"{what}, which is fixed because {reason}" if reason else what)


def _size_mismatch(spec: TensorInput, shape: torch.Size, what: str, fix: str = _ANEW) -> CaptureMismatchError:
    captured = ", ".join(str(dim) for dim in spec.dims)
    return CaptureMismatchError(
        f"{what}; got shape {tuple(shape)}, captured as ({captured})", where=f"argument '{spec.name}'", fix=fix
    )
