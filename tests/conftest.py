"""Makes `zoo` importable from every test and starts each of them from the same random numbers."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import examples  # noqa: E402, F401, registers the profiles of hypothesis


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that share something expensive share a worker of pytest-xdist, where it is made once for all of them.

    That is one network of the zoo, or what a file's fixtures make for the whole file.
    """
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        group = _network_of(item) or _file_with_fixtures(item)
        if group:
            item.add_marker(pytest.mark.xdist_group(group))


def _network_of(item: pytest.Item) -> str:
    from zoo import ARCHITECTURES

    if marker := item.get_closest_marker("beside"):
        return str(marker.args[0])
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return next((value for value in values if isinstance(value, str) and value in ARCHITECTURES), "")


def _file_with_fixtures(item: pytest.Item) -> str:
    found = item._fixtureinfo.name2fixturedefs.values() if isinstance(item, pytest.Function) else ()
    shared = any(each.scope == "module" for definitions in found for each in definitions)
    return item.nodeid.split("::")[0] if shared else ""
