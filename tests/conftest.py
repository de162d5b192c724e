"""Makes `zoo` importable from every test and starts each of them from the same random numbers."""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import examples  # noqa: E402, F401, registers the profiles of hypothesis


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module", name="quickly")
def _quickly() -> Iterator[None]:
    """Before all that a file makes."""
    from quickly import quickly  # brings the package, which few files need

    with quickly():
        yield


@pytest.fixture(scope="module", autouse=True)
def _what_is_there_already_stays() -> None:
    """So that garbage is looked for in what a file makes, and not in every module and test that was ever imported."""
    gc.collect()
    gc.freeze()
