"""Trace a network with as many of its sizes open as it allows, and keep the reasons for those that are not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from torch.export import ExportedProgram

from qdiff_fx.capture.example import Example
from qdiff_fx.capture.guards import Watch, line_of_error, place
from qdiff_fx.capture.sizes import (
    NOTHING_FIXED,
    ROWS,
    TOKENS,
    Assumption,
    assumptions,
    exact_inputs,
    plan_inputs,
    symbols_of,
    traced_sizes,
    wider,
)
from qdiff_fx.errors import CaptureError
from qdiff_fx.signature.inputs import BATCH, Size, TensorInput

Trace = Callable[[tuple[TensorInput, ...], Watch], ExportedProgram]


@dataclass(frozen=True)
class Plan:
    """What to leave open; see `plan_inputs`.

    Attributes:
        before: the strides as they were, once wider ones are tried.
        asked: what the network asked about sizes before that.
    """

    example: Example
    strides: tuple[int, ...]
    fixed: Mapping[str, str] = field(default_factory=lambda: NOTHING_FIXED)
    rows: Mapping[str, str | None] = field(default_factory=lambda: NOTHING_FIXED)
    before: tuple[int, ...] | None = None
    asked: Mapping[str, str] = field(default_factory=lambda: NOTHING_FIXED)

    def inputs(self) -> tuple[TensorInput, ...]:
        return plan_inputs(self.example, self.strides, self.fixed, self.rows)


@dataclass(frozen=True)
class Traced:
    program: ExportedProgram
    inputs: tuple[TensorInput, ...]


def trace_exactly(trace: Trace, example: Example) -> Traced:
    """For the sizes of the example only."""
    inputs = exact_inputs(example)
    return Traced(trace(inputs, Watch()), inputs)


def trace_open(trace: Trace, plan: Plan) -> Traced:
    """As long as export fails, or assumes something about a size, fix that size and trace again.

    Before the batch is fixed, inputs that only look like one item per sample are given a number of rows of their own.

    Raises:
        CaptureError: it cannot be traced at all.
    """
    traced = _trace_open(trace, plan)
    if _batch_is_open(traced.inputs):
        return traced
    for other in _with_tables(plan):
        found = _trace_open(trace, other)
        if _batch_is_open(found.inputs):
            return found
    return traced


def _trace_open(trace: Trace, plan: Plan) -> Traced:
    while True:
        inputs, watch = plan.inputs(), Watch()
        try:
            program = trace(inputs, watch)
        except CaptureError as error:
            if not symbols_of(inputs):
                raise
            found = [_failure(error, inputs, plan.example, watch)]
        else:
            found = assumptions(program, inputs, watch)
            if not found:
                return Traced(program, inputs)
        plan = _less_open(plan, found)


def _less_open(plan: Plan, found: list[Assumption]) -> Plan:
    """Sizes in wider steps where the image is concerned and that was not tried; else what was found becomes fixed."""
    reasons: dict[str, str] = {}
    for each in found:
        for symbol in _least_needed(each.symbols):
            reasons.setdefault(symbol, each.why)
    if any(map(_is_spatial, reasons)):
        if plan.before is None:
            divisors = {number for each in found for number in each.divisors}
            strides = wider(plan.strides, plan.example.tensors[plan.example.sample], divisors)
            if strides != plan.strides:
                asked = {symbol: each.why for each in found if not each.failed for symbol in each.symbols}
                return replace(plan, strides=strides, before=plan.strides, asked=asked)
        else:  # they did not help
            plan = replace(plan, strides=plan.before)
    reasons = {symbol: plan.asked.get(symbol, why) for symbol, why in reasons.items()}
    return replace(plan, fixed={**plan.fixed, **reasons})


def _failure(error: CaptureError, inputs: tuple[TensorInput, ...], example: Example, watch: Watch) -> Assumption:
    """A trace that failed says nothing about which of the sizes it was."""
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    tried = ", ".join(f"{symbol} {size}" for symbol, size in traced_sizes(inputs, example).items())
    where = place(error.where, line_of_error(cause))
    message = watch.in_words(lines[0]) if lines else "no message"
    why = f"{where} fails with other sizes ({tried}): {type(cause).__name__}: {message}"
    divisors = frozenset(map(int, re.findall(r"//\s*(\d+)", message)))
    return Assumption(frozenset(symbols_of(inputs)), why, divisors, failed=True)


def _least_needed(symbols: frozenset[str]) -> frozenset[str]:
    """What to fix first: rows of tables, spatial sizes, token lengths, the batch last."""
    rows = frozenset(symbol for symbol in symbols if symbol.endswith(ROWS))
    spatial = frozenset(filter(_is_spatial, symbols))
    return rows or spatial or symbols - {BATCH} or symbols


def _is_spatial(symbol: str) -> bool:
    return symbol != BATCH and not symbol.endswith((TOKENS, ROWS))


def _batch_is_open(inputs: tuple[TensorInput, ...]) -> bool:
    return any(spec.role == "sample" and spec.dims[0] == Size(BATCH) for spec in inputs)


def _with_tables(plan: Plan) -> Iterator[Plan]:
    """Each input that has as many rows as the batch taken for a table, then all of them."""
    names = [spec.name for spec in plan.inputs() if not spec.role and spec.rows_per_sample]
    for chosen in [*([name] for name in names), *([names] if len(names) > 1 else [])]:
        yield replace(plan, rows={**plan.rows, **dict.fromkeys(chosen)})
