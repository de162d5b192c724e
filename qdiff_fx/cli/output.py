"""Where a command's words go: tables to stdout, progress to stderr, figures to ``--json``."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, RenderableType

from qdiff_fx.atomic import check_writable, write_text
from qdiff_fx.distributed import Workers
from qdiff_fx.errors import ArtifactError, printable
from qdiff_fx.workflow.overall import Overall
from qdiff_fx.workflow.screen import SilentScreen, make_screen

STDOUT = "-"
PIPE_WIDTH = 160


class Output:
    """The channels of one command.

    Args:
        json_target: a file for the figures; ``-`` for stdout, which then carries nothing else.
        silent: say and write nothing: another process speaks for this one.
    """

    def __init__(self, json_target: str | None = None, *, silent: bool = False):
        self._json_target, self._silent = None if silent else json_target, silent
        if self._json_target not in (None, STDOUT):
            check_writable_file(Path(str(self._json_target)))
        self._tables = _console(stderr=json_target == STDOUT)
        self._progress = Console(stderr=True)

    @property
    def interactive(self) -> bool:
        """Whether somebody is watching, so that bars are worth drawing."""
        return sys.stderr.isatty()

    def show(self, what: RenderableType) -> None:
        """A result: a table or a line."""
        if self._silent:
            return
        self._tables.print(what, highlight=False, markup=False)

    def note(self, line: str) -> None:
        """What is being done now."""
        if self._silent:
            return
        self._progress.print(printable(line), style="dim", highlight=False, markup=False)

    def progress(self) -> Overall:
        """One bar over everything for somebody at a terminal, lines for a file; to be used in a ``with``."""
        return Overall(SilentScreen() if self._silent else make_screen(self.note, interactive=self.interactive))

    def figures(self, data: dict[str, Any]) -> None:
        """Write the figures where ``--json`` says, if anywhere. Infinities become null: JSON has none."""
        if self._json_target is None:
            return
        text = json.dumps(_finite(data), indent=2, allow_nan=False) + "\n"
        if self._json_target == STDOUT:
            sys.stdout.write(text)
        else:
            write_text(Path(self._json_target), text)


def check_writable_file(path: Path) -> None:
    """Raises ArtifactError, before the work, where that file cannot be written after it."""
    if path.is_dir():
        raise ArtifactError("it cannot be written (it is a folder)", where=str(path), fix="Give a file")
    check_writable(path)


@contextmanager
def speaking_for_all(workers: Workers) -> Iterator[None]:
    """Only the leading process says what went wrong, in whichever of them: it is told."""
    try:
        yield
    except Exception as error:
        if workers.leads:
            raise
        raise typer.Exit(1) from error


def _console(*, stderr: bool) -> Console:
    """Tables keep their full width in files and pipes, where nothing says how wide they may be."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=PIPE_WIDTH)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
