"""What export asked about the sizes of a network's tensors while tracing it, and where in the network it was asked."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from traceback import FrameSummary
from types import FrameType
from typing import Any

import sympy
import torch
from torch.utils._sympy.functions import FloorDiv, Min, Mod, PythonMod

_LOGGER = logging.getLogger("torch.fx.experimental.symbolic_shapes")
_ADDED = "[guard added]"
_DIVISIONS = (Mod, PythonMod, FloorDiv)
_CAPTURE, _TORCH, _PYTHON = (str(Path(each).parent) for each in (__file__, torch.__file__, contextlib.__file__))
_TRIED = (*range(1, 41), 63, 64, 65, 96, 97, 127, 128, 129, 255, 256, 500, 1000, 4095, 4096, 10**6 + 3)
# Of torch._prims_common: how a tensor lies in memory. Where the answer is no, what follows holds for every layout.
_LAYOUT_QUESTIONS = frozenset(
    {
        "is_contiguous",
        "check_contiguous_sizes_strides",
        "is_channels_last_contiguous_2d",
        "is_channels_last_contiguous_3d",
        "are_strides_like_channels_last_or_false",
    }
)


@dataclass
class Watch:
    """Notes of one trace.

    Attributes:
        names: export's symbol of a size -> our name of it.
        places: text of a guard -> the module that was running, and the line of the network's code.
    """

    names: dict[str, str] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def watching(self, running: Callable[[], str]) -> Iterator[None]:
        """Note the place of every guard; `running` tells the path of the module that runs."""
        level = _LOGGER.level
        quiet = not _LOGGER.isEnabledFor(logging.INFO)

        def look(record: logging.LogRecord) -> bool:
            if _ADDED in str(record.msg) and isinstance(record.args, tuple) and len(record.args) > 1:
                self.places.setdefault(str(record.args[1]), place(running(), _line_of(sys._getframe())))
            return not (quiet and record.levelno <= logging.INFO)

        _LOGGER.addFilter(look)
        if quiet:
            _LOGGER.setLevel(logging.INFO)
        try:
            yield
        finally:
            _LOGGER.removeFilter(look)
            _LOGGER.setLevel(level)

    def place_of(self, name: str) -> str:
        """Where a size of that name was asked about first."""
        symbols = {symbol for symbol, each in self.names.items() if each == name}
        found = (where for guard, where in self.places.items() if symbols & set(re.findall(r"\bs\d+\b", guard)))
        return next(found, "")

    def in_words(self, condition: object) -> str:
        """A condition or a message by our names: "width <= 32"."""
        return re.sub(r"\bs\d+\b", lambda symbol: self.names.get(symbol[0], symbol[0]), str(condition))


def place(path: str, line: str) -> str:
    return " ".join(part for part in (path or "the network itself", f"({line})" if line else "") if part)


def line_of_error(error: BaseException) -> str:
    """The innermost line of the network's own code that an exception came through: "unet.py:31"."""
    line, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file.startswith(_CAPTURE):
            line = ""  # what is further out called us
        elif _is_the_networks(file):
            line = f"{Path(file).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return line


def _line_of(frame: FrameType | None) -> str:
    """The innermost line of the network's code that is running, seen from this frame inside it."""
    while frame is not None:
        file = frame.f_code.co_filename
        if _is_the_networks(file):
            return f"{Path(file).name}:{frame.f_lineno}"
        if file.startswith(_CAPTURE) and not file.endswith("guards.py"):
            return ""
        frame = frame.f_back
    return ""


def _is_the_networks(file: str) -> bool:
    python = file.startswith(_PYTHON) and "site-packages" not in file
    return not python and not file.startswith((_CAPTURE, _TORCH, "<"))


def open_questions(shape_env: Any, names: Mapping[str, str]) -> list[tuple[str, sympy.Basic]]:
    """Text and condition of every guard that is not true for all sizes, and that the graph depends on."""
    found = []
    for guard in shape_env.guards:
        condition = _settle_minima(shape_env.replace(guard.expr))
        ours = [symbol for symbol in condition.free_symbols if str(symbol) in names]
        if ours and not _only_layout(guard, condition) and not _holds(condition):
            found.append((str(guard.expr), condition))
    return found


def divisors(condition: sympy.Basic) -> set[int]:
    """Numbers that sizes are divided by in it."""
    return {int(part.args[1]) for part in condition.atoms(*_DIVISIONS) if part.args[1].is_Integer and part.args[1] > 1}


def _only_layout(guard: Any, condition: sympy.Basic) -> bool:
    """Whether it says no more than that memory is not laid out in a special way, or that a tensor is not empty."""
    where = guard.sloc.framework_loc
    if not isinstance(where, FrameSummary):
        return False
    file = Path(where.filename)
    if file.name == "_meta_registrations.py":
        return isinstance(condition, sympy.Ne) and 0 in condition.args
    layout = file.parent.name == "_prims_common" and where.name in _LAYOUT_QUESTIONS
    return layout and isinstance(condition, sympy.Ne | sympy.Ge | sympy.Gt)


def _holds(condition: sympy.Basic) -> bool:
    """Whether it is true of all sizes, as far as trying tells: conditions with divisions are seldom simplified."""
    symbols = sorted(condition.free_symbols, key=str)
    if len(symbols) > 2 or not condition.atoms(*_DIVISIONS):
        return False
    sizes = _TRIED if len(symbols) == 1 else _TRIED[::5]
    return all(condition.subs(dict(zip(symbols, each))) == True for each in product(sizes, repeat=len(symbols)))  # noqa: E712


def _settle_minima(condition: sympy.Basic) -> sympy.Basic:
    """Take Min(32, 32*width) for 32: sizes are at least 1. Export's stride arithmetic is full of these."""
    return condition.replace(Min, _smaller)


def _smaller(*parts: sympy.Expr) -> sympy.Expr:
    numbers = [part for part in parts if part.is_number]
    if len(numbers) == 1 and all(part is numbers[0] or _at_least(part, numbers[0]) for part in parts):
        return numbers[0]
    return Min(*parts)


def _at_least(expression: sympy.Expr, number: sympy.Expr) -> bool:
    """Whether a polynomial that only grows with its sizes reaches `number` where all of them are 1."""
    if not expression.is_polynomial(*expression.free_symbols):
        return False
    coefficients = sympy.Poly(expression, *expression.free_symbols).coeffs()
    return all(coefficient > 0 for coefficient in coefficients) and sum(coefficients) >= number
