"""Values that pipelines read from inside a network: which there are, and the namespaces that hold them in its place."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

from qdiff_fx.errors import ConfigError

# What a pipeline of Stable Diffusion XL compares its time embeddings with.
READ_BY_PIPELINES = ("add_embedding.linear_1.in_features",)


def namespaces(attributes: Mapping[str, object]) -> dict[str, SimpleNamespace]:
    """Plain objects, by the first part of each path, that hold these values: nothing of a network is among them.

    Args:
        attributes: values by dotted path.

    Raises:
        ConfigError: a path that pipelines do not read, or a value that is no number, string or truth.
    """
    top = SimpleNamespace()
    for path, value in attributes.items():
        if path not in READ_BY_PIPELINES:
            raise ConfigError(
                f"{path!r} is not among what pipelines read from a network",
                where="attributes",
                fix="A newer qdiff_fx may know it; in a folder from somebody else it may be meant to do harm",
            )
        if not isinstance(value, bool | int | float | str):
            raise ConfigError(f"{path} is a {type(value).__name__}, not one value", where="attributes")
        *owners, name = path.split(".")
        owner = top
        for each in owners:
            owner = vars(owner).setdefault(each, SimpleNamespace())
        vars(owner)[name] = value
    return vars(top)
