"""From keyword arguments to the options of one backend, with a clear word about those it does not have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from qdiff_fx.backends.common.base import Backend, BackendOptions
from qdiff_fx.errors import ConfigError

# Keyword arguments of the public calls: every backend is handed them, most have only some of these options.
DEFAULTS: dict[str, Any] = {"compute_dtype": None, "output_quantizers": False, "compile": True, "reuse": True}


def option_names(backend: Backend) -> tuple[str, ...]:
    """The options a backend has."""
    return tuple(each.name for each in fields(backend.options))


def choose_options(backend: Backend, given: Mapping[str, Any]) -> BackendOptions:
    """The backend's options, set as the keyword arguments say.

    Raises:
        ConfigError: an argument that is no option of this backend is set to something other than its default.
    """
    names = option_names(backend)
    for name, value in given.items():
        if name not in names and not (name in DEFAULTS and value == DEFAULTS[name]):
            raise ConfigError(
                f"the {backend.name} backend has no such option",
                where=f"{name}={value!r}",
                fix=f"Its options are {', '.join(names)}" if names else "It has no options",
            )
    return backend.options(**{name: value for name, value in given.items() if name in names})


def known_options(backend: Backend, **wanted: Any) -> BackendOptions:
    """The backend's options, set as wanted as far as it has them."""
    return backend.options(**{name: value for name, value in wanted.items() if name in option_names(backend)})


def checked_options(backend: Backend, options: BackendOptions | None) -> BackendOptions:
    """The options, or all defaults for ``None``.

    Raises:
        ConfigError: they are those of another backend.
    """
    if options is None:
        return backend.options()
    if not isinstance(options, backend.options):
        raise ConfigError(
            f"the {backend.name} backend takes {backend.options.__name__}, not {type(options).__name__}",
            where="options",
            fix=f"Its options are {', '.join(option_names(backend)) or 'none'}",
        )
    return options
