"""Which compiled kernels run in this process, where they come from, and if there are none, why."""

from __future__ import annotations

import functools
import os
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from qdiff_fx.errors import KernelError
from qdiff_fx.kernels.build import OPERATORS, Recipe, kernels_of, more_flags
from qdiff_fx.kernels.isa import choose_isa
from qdiff_fx.kernels.just_in_time import cached_or_built
from qdiff_fx.kernels.libraries import Loaded, load, start

_SWITCH = "QDIFF_KERNELS"  # "0" or "reference": plain torch only; an instruction set: that one
PACKAGED = Path(__file__).parent / "lib"  # the libraries that a wheel brings


@dataclass(frozen=True)
class Status:
    """Whether the C++ kernels run in this process, and if not, why.

    Attributes:
        reason: why there are none.
        kernel: the instruction set.
        library: its library.
        operators: the library of operators that calls it.
        disabled: by the user, not by a lack of something.
        delete_plan: what deletes the plan of a number.
    """

    available: bool
    reason: str = ""
    kernel: str = ""
    library: Path | None = None
    operators: Path | None = None
    disabled: bool = False
    delete_plan: Callable[[int], None] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.available == bool(self.reason):
            raise ValueError("a reason is given exactly when the kernels are not available")

    @property
    def source(self) -> str:
        """Where the kernels come from."""
        if self.library is None:
            return "nowhere"
        return "the package" if self.library.parent == PACKAGED else "compiled here"


_lock = threading.Lock()


def status() -> Status:
    """Load the kernels, built first where the package has none (some seconds); later calls repeat the answer."""
    with _lock:
        return _load_once()


@functools.cache
def _load_once() -> Status:
    choice = os.environ.get(_SWITCH, "").lower()
    if choice in ("0", "reference"):
        return Status(False, f"{_SWITCH}={choice} asks for the plain-torch reference", disabled=True)
    try:
        isa = choose_isa("" if choice == "1" else choice)
        kernels, operators = _both(kernels_of(isa))
        delete_plan = start(operators, kernels)
    except KernelError as error:
        return Status(False, str(error))
    return Status(True, "", isa.name, kernels.path, operators.path, delete_plan=delete_plan)


def _both(kernels: Recipe) -> tuple[Loaded, Loaded]:
    """The kernels and the operators: both of the package, or both compiled here."""
    found = _packaged(kernels)
    return found or (cached_or_built(kernels), cached_or_built(OPERATORS))


def _packaged(kernels: Recipe) -> tuple[Loaded, Loaded] | None:
    if more_flags() or not PACKAGED.is_dir():
        return None
    try:
        return load(PACKAGED / kernels.file, kernels), load(PACKAGED / OPERATORS.file, OPERATORS)
    except KernelError as error:
        warnings.warn(f"the package's compiled kernels are not used: {error}", RuntimeWarning, stacklevel=2)
        return None
