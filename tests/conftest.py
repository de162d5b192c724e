"""Makes `zoo` importable from every test and starts each of them from the same random numbers."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of one network of the zoo share a worker of pytest-xdist, where it is captured once for all of them."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    from zoo import ARCHITECTURES

    for item in items:
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        for name in [value for value in values if isinstance(value, str) and value in ARCHITECTURES]:
            item.add_marker(pytest.mark.xdist_group(name))
