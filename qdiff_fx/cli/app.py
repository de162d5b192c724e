"""The application: its commands, and the one option they all have."""

from __future__ import annotations

from typing import Annotated

import typer

import qdiff_fx
from qdiff_fx.cli.bench import bench
from qdiff_fx.cli.demo import demo
from qdiff_fx.cli.doctor import doctor
from qdiff_fx.cli.errors import OneLineErrors
from qdiff_fx.cli.evaluate import evaluate
from qdiff_fx.cli.export import export
from qdiff_fx.cli.inspect import inspect
from qdiff_fx.cli.quantize import quantize
from qdiff_fx.cli.report import report
from qdiff_fx.cli.sample import sample
from qdiff_fx.cli.schedule import schedule
from qdiff_fx.cli.tune import tune_command

app = typer.Typer(
    name="qdiff",
    cls=OneLineErrors,
    help="Quantize diffusion UNets to integers and run them on integer kernels.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"qdiff_fx {qdiff_fx.__version__}")
        raise typer.Exit()


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options before the command; `OneLineErrors` reads them."""


app.command()(demo)
app.command()(quantize)
app.command()(schedule)
app.command("tune")(tune_command)
app.command()(inspect)
app.command("eval")(evaluate)
app.command()(export)
app.command()(bench)
app.command()(doctor)
app.command()(report)
app.command()(sample)


def main() -> None:
    """The entry point of the ``qdiff`` script."""
    app()
