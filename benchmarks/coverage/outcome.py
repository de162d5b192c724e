"""What becomes of one network: calibrated along its schedule, quantized, and compared with itself in float."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.coverage.network import Network
from qdiff_fx import QDiffConfig, calibrate, convert_qdiff, prepare_qdiff
from qdiff_fx.backends.common.base import count_layers
from qdiff_fx.errors import QDiffError
from qdiff_fx.quant.numerics import sqnr_db

ROUNDS = 4  # over the schedule


@dataclass(frozen=True)
class Outcome:
    """One row of the table.

    Attributes:
        id: the network's.
        family, name: the network's.
        refused: the sentence with which it was refused; empty where it was not.
        crashed: what was raised that nobody should see; empty where nothing was.
        integer, floating: how many layers of `native` run on integers, and how many do not.
        reasons: why those do not.
        reference_db, native_db: SQNR against the float network, over the schedule, on data not calibrated on.
        notes: what `prepare_qdiff` warned of.
        seconds: all of it.
    """

    id: str
    family: str
    name: str
    refused: str = ""
    crashed: str = ""
    integer: int = 0
    floating: int = 0
    reasons: tuple[str, ...] = ()
    reference_db: float = 0.0
    native_db: float = 0.0
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


def outcome(network: Network) -> Outcome:
    """Quantize one network to 8 bits by the defaults; no exception gets out."""
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = _tried(network)
    notes = tuple(dict.fromkeys(str(each.message) for each in caught if "qdiff" in type(each.message).__module__))
    return Outcome(network.id, network.family, network.name, **found, notes=notes, seconds=time.perf_counter() - start)


def _tried(network: Network) -> dict[str, Any]:
    try:
        return _measured(network)
    except QDiffError as error:
        return {"refused": str(error)}
    except Exception as error:
        return {"crashed": f"{type(error).__name__}: {error}"}


def _measured(network: Network) -> dict[str, Any]:
    torch.manual_seed(0)
    model, example = network.made()
    prepared = prepare_qdiff(model, QDiffConfig(), example)
    calibrate(prepared, [batch for _ in range(ROUNDS) for batch in _along(network, example)], progress=False)
    unseen = _along(network, example)
    exact = [_results(model, batch) for batch in unseen]
    reference, native = convert_qdiff(prepared, "reference"), convert_qdiff(prepared, "native")
    rows = native.explain()
    integer, floating = count_layers(rows.rows)
    return {
        "integer": integer,
        "floating": floating,
        "reasons": tuple(dict.fromkeys(row.reason for row in rows.in_float)),
        "reference_db": _fidelity(reference, unseen, exact),
        "native_db": _fidelity(native, unseen, exact),
    }


def _along(network: Network, example: dict[str, Any]) -> list[dict[str, Any]]:
    """A batch for each timestep of the schedule: new noise in all images and embeddings."""
    return [_batch(network, example, value) for value in network.timesteps[: None if network.timestep else 3]]


def _batch(network: Network, example: dict[str, Any], value: float) -> dict[str, Any]:
    return {
        name: torch.full_like(argument, value) if name == network.timestep else _again(name, argument)
        for name, argument in example.items()
    }


def _again(name: str, argument: Any) -> Any:
    if isinstance(argument, dict):
        return {key: _again(key, each) for key, each in argument.items()}
    if isinstance(argument, (list, tuple)):
        return type(argument)(_again(name, each) for each in argument)
    fixed = not isinstance(argument, Tensor) or not argument.is_floating_point() or name.endswith(FIXED)
    return argument if fixed else torch.randn_like(argument) * argument.std(unbiased=False) + argument.mean()


FIXED = ("mask", "ids", "rotary_emb", "rotary_embedding", "guidance", "size", "coords", "resolution", "aspect_ratio")
"""Endings of arguments that mean something: other values would be other networks' or none."""


def _results(model: Callable[..., Any], batch: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        tensors = list(_tensors(model(**batch)))
    return torch.cat([each.float().flatten() for each in tensors])


def _tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, dict):
        return [each for value in result.values() for each in _tensors(value)]
    if isinstance(result, (list, tuple)):
        return [each for value in result for each in _tensors(value)]
    return [] if result is None else [each for value in vars(result).values() for each in _tensors(value)]


def _fidelity(model: Callable[..., Any], batches: list[dict[str, Any]], exact: list[Tensor]) -> float:
    return sqnr_db(torch.cat(exact), torch.cat([_results(model, batch) for batch in batches]))
