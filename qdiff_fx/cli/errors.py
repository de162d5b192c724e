"""Errors a person at a terminal can use: one line on stderr, and an exit code that says whose fault it was.

Exit codes: 0 success, 1 the work failed, 2 the command line asked for something that does not exist, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from qdiff_fx.errors import ConfigError, QDiffError, printable

FAILURE, USAGE = 1, 2


class OneLineErrors(TyperGroup):
    """Prints ``error: …`` in place of a traceback, unless the group's ``--debug`` is given."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            if ctx.params.get("debug") or _is_control_flow(error) or isinstance(error, BrokenPipeError):
                raise
            _print(_describe(self._as_given(ctx, error)))
            raise typer.Exit(USAGE if isinstance(error, ConfigError) else FAILURE) from error

    def _as_given(self, ctx: Any, error: Exception) -> Exception:
        """What a configuration calls weight_rounding, and the command --rounding, by the name on the command line."""
        command = self.get_command(ctx, ctx.invoked_subcommand or "")
        where = error.where if isinstance(error, ConfigError) else ""
        options = [each.opts[0] for each in getattr(command, "params", ()) if each.name == where]
        if not (isinstance(error, ConfigError) and options and options[0].startswith("-")):
            return error
        return ConfigError(error.what, where=options[0], fix=error.fix)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except BrokenPipeError:
            # Whoever read has read enough, as `head` has; Python is to flush what is left to nobody.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = FAILURE
        except Exception as error:
            if not (standalone_mode and hasattr(error, "format_message")):
                raise
            code = getattr(error, "exit_code", USAGE)
            # Without arguments there is nothing wrong: help was asked for.
            if text := error.format_message():
                _print(text)
            else:
                code = 0
        if standalone_mode:
            sys.exit(code if isinstance(code, int) else 0)
        return code


def _is_control_flow(error: Exception) -> bool:
    """Typer's own exceptions: leaving early, or a command line it could not parse."""
    return isinstance(error, (typer.Exit, typer.Abort)) or hasattr(error, "format_message")


def _describe(error: Exception) -> str:
    if isinstance(error, QDiffError):
        return " ".join([str(error), *getattr(error, "__notes__", ())])
    return f"{type(error).__name__}: {error} (`qdiff --debug …` shows where)"


def _print(message: str) -> None:
    print("error:", " ".join(printable(message).split()), file=sys.stderr)
