"""How an operator becomes known to torch, and which of its implementations a call runs.

An operator is a file of `kernels/ops/`: a schema, its meaning in plain torch (`reference`), what it checks (`check`),
the form of its result (`fake`), and the line that registers it. The compiled one is the C++ file of the same name.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from qdiff_fx.kernels import checks
from qdiff_fx.kernels.dispatch import status

_library = torch.library.Library("qdiff", "FRAGMENT")  # the registrations live as long as this object


def register(
    name: str,
    schema: str,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    called: str = "",
    compiled: bool = True,
    tags: tuple[torch.Tag, ...] = (),
) -> torch._ops.OpOverload[..., Any]:
    """Make an operator known as ``torch.ops.qdiff.<name>``.

    Args:
        name: with an overload, if it has several: "int_attention_vnni.numbers".
        schema: its arguments and results.
        reference: what it computes, in plain torch.
        fake: the result's shape, dtype and strides, from arguments without data.
        called: what errors call it; its name if there is nothing else.
        compiled: whether there is a C++ kernel for it.
        tags: what torch.compile has to respect.

    Returns:
        The operator.
    """
    packet, _, overload = name.partition(".")
    op = called or packet
    implementation = _compiled_or(packet, overload or "default", reference) if compiled else reference
    _library.define(name + schema, tags=(*tags, torch.Tag.pt2_compliant_tag))
    _library.impl(name, _checked(op, schema, implementation), "CompositeExplicitAutograd")
    torch.library.register_fake(f"qdiff::{name}", _checked(op, schema, fake), lib=_library)
    return _operator(packet, overload or "default")


def register_composite(name: str, schema: str, function: Callable[..., Any]) -> torch._ops.OpOverload[..., Any]:
    """Make an operator known that is nothing but other operators, which torch looks into."""
    _library.define(name + schema)
    _library.impl(name, function, "CompositeImplicitAutograd")
    return _operator(name, "default")


def tensors(args: Iterable[Any]) -> Iterator[Tensor]:
    """Those among arguments, and in lists among them."""
    for each in args:
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, (list, tuple)):
            yield from (item for item in each if isinstance(item, Tensor))


def _operator(packet: str, overload: str) -> torch._ops.OpOverload[..., Any]:
    found: torch._ops.OpOverload[..., Any] = getattr(getattr(torch.ops.qdiff, packet), overload)
    return found


def _compiled_or(packet: str, overload: str, reference: Callable[..., Any]) -> Callable[..., Any]:
    """Builds and loads the compiled kernels at the first call; without them runs the reference.

    Loading registers C++ kernels for the CPU over these functions, so they are left after the first call.
    """

    def run(*args: Any) -> Any:
        state = status()
        if state.available and _is_for_cpu(args):
            return _operator(packet, overload)(*args)
        if not state.available and not state.disabled:
            _warn_once(state.reason)
        return reference(*args)

    return run


@functools.cache
def _warn_once(reason: str) -> None:
    warnings.warn(f"int8 kernels run in plain torch, slowly: {reason}", RuntimeWarning, stacklevel=4)


def _checked(op: str, schema: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, given no less than the schema says, and tensors that it can look at."""
    needed = [
        index for index, each in enumerate(schema.lstrip("(").split(", ")) if each.startswith(("Tensor ", "Tensor("))
    ]

    def run(*args: Any) -> Any:
        # Tensors of other layouts come here on the CPU too, and would again from `_compiled_or`.
        if any(args[index] is None for index in needed):
            raise checks.error(op, "a tensor is missing")
        checks.plain(op, tensors(args))
        return function(*args)

    return run


def _is_for_cpu(args: tuple[Any, ...]) -> bool:
    return any(x.device.type == "cpu" for x in tensors(args)) and not any(x.is_meta for x in tensors(args))
