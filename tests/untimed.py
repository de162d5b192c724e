"""What things take is not measured, where it is not what is tested."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields

import pytest

from qdiff_fx.workflow import measure


@contextmanager
def untimed() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(measure, "SECONDS", 1e-3)
        patched.setattr(measure, "measure_rates", lambda act_range: measure.Rates(*[1e9] * len(fields(measure.Rates))))
        yield
