"""Options that take one of a few words: the help shows them, the shell completes them, an error lists them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import typer


def choice(declaration: str, words: Callable[[], Sequence[str]], help: str) -> Any:
    """An option of that name.

    Args:
        words: what may be given, asked for when it is needed: plug-ins may add some.
    """

    def checked(value: str | None) -> str | None:
        if value is not None and value not in words():
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(words())}")
        return value

    def completed(incomplete: str) -> list[str]:
        return [word for word in words() if word.startswith(incomplete)]

    return typer.Option(
        declaration,
        metavar="NAME",
        help=f"{help} One of {', '.join(words())}.",
        callback=checked,
        autocompletion=completed,
    )
