"""The ``qdiff`` command: one file per subcommand."""

from __future__ import annotations

from qdiff_fx.cli.app import app, main

__all__ = ["app", "main"]
