"""Command lines of the docs, carried out as far as their work would begin.

Options, values, names of networks and of variants are checked by the programs themselves: what does their work is
replaced by something that says it was reached.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from torch.distributed.run import get_args_parser
from typer.testing import CliRunner

from qdiff_fx import QDiffConfig
from qdiff_fx.cli import app
from qdiff_fx.cli.config_file import write_config
from qdiff_fx.cli.schedule_file import write_schedule
from qdiff_fx.schedule import Schedule
from tests.docs.blocks import ROOT

# Where the work of a command begins.
WORK_OF_QDIFF = {
    "bench": ("bench", "load_qdiff"),
    "demo": ("demo", "DigitsSource"),
    "doctor": ("doctor", "status"),
    "eval": ("evaluate", "started_together"),
    "export": ("export", "load_qdiff"),
    "inspect": ("inspect", "load_qdiff"),
    "quantize": ("quantize", "started_together"),
    "report": ("report", "load_qdiff"),
    "sample": ("sample", "load_qdiff"),
    "schedule": ("schedule", "load_source"),
    "tune": ("tune", "started_together"),
}
WORK_OF_BENCHMARKS = {
    "caching": "resolve",
    "coverage.__main__": "_in_a_process",
    "decoder": "artifact_cache",
    "enough_data": "resolve",
    "fidelity": "SUBJECTS in benchmarks.subjects",
    "guidance": "Judge",
    "kernels.cycles": "clock",
    "lora": "compare",
    "offline_pipeline": "AutoencoderKL",
    "paper.__main__": "EXPERIMENTS",
    "profile_step": "artifact_cache",
    "quantize_cost": "Costs",
    "rounding": "layers_of, print_times",
    "startup": "artifact_cache",
    "steps": "resolve",
    "unet_step": "artifact_cache",
    "whole_image": "artifact_cache",
}
PLACEHOLDERS = {"N": "4", "EXPERIMENT": "all"}
OPTIONAL = re.compile(r"^\[(--.*)$|^([^\[]*)\]$")
ASSIGNMENT = re.compile(r"[A-Z_]+=\S*$")


class Reached(BaseException):
    """The work of a command line would begin here. No Exception: programs report those."""


def commands(text: str) -> list[list[str]]:
    """The words of each command of a block, without comments and variables of the environment."""
    lines = re.sub(r"\\\n", "", text).splitlines()
    found = [_words(line) for line in lines]
    return [words for words in found if words]


def _words(line: str) -> list[str]:
    words = shlex.split(line, comments=True)
    while words and ASSIGNMENT.match(words[0]):
        words = words[1:]
    words = [OPTIONAL.sub(r"\1\2", word) for word in words if word != "…"]
    return [PLACEHOLDERS.get(word, word) for word in words]


def wrong(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What a command line has wrong; empty if its work would begin. The current folder is written to."""
    program, *arguments = words
    if program == "qdiff":
        return _wrong_for_qdiff(arguments, monkeypatch)
    if program == "python" and arguments[:1] == ["-m"]:
        return _wrong_for_module(arguments[1], arguments[2:], monkeypatch)
    if program == "torchrun":
        return _wrong_for_torchrun(arguments, monkeypatch)
    if program == "make":
        known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return "" if set(arguments) <= set(known) else f"{arguments} are no targets of the Makefile"
    if words[:2] == ["pip", "install"]:
        return _wrong_for_pip(arguments[1:])
    return f"nobody knows how to check {program!r}"


def _wrong_for_qdiff(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> str:
    if arguments[:1] and arguments[0] in WORK_OF_QDIFF:
        module, name = WORK_OF_QDIFF[arguments[0]]
        _stop(monkeypatch, importlib.import_module(f"qdiff_fx.cli.{module}"), name)
    found = _until_work(lambda: CliRunner().invoke(app, list(arguments)))
    _leave_what_it_writes(arguments)
    return found


def _leave_what_it_writes(arguments: Sequence[str]) -> None:
    """Configurations and schedules, for the lines that follow."""
    if "--out" not in arguments or arguments[0] not in ("tune", "schedule"):
        return
    file = Path(arguments[arguments.index("--out") + 1])
    if arguments[0] == "tune":
        write_config(QDiffConfig(), file)
    else:
        write_schedule(Schedule("DDIMScheduler", 1000, 25, (0, 1), (999.0, 959.0)), file)


def _wrong_for_module(module: str, arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> str:
    if module == "tests.pipelines":
        from tests.pipelines.tables import LINES

        unknown = [word for word in arguments if not any(word in line.name for line in LINES)]
        return f"no line of the tables holds {unknown}" if unknown else ""
    if module == "pytest":
        missing = [word for word in arguments if "/" in word and not (ROOT / word).exists()]
        return f"there is no {missing}" if missing else ""
    if not module.startswith("benchmarks."):
        return f"nobody knows how to check {module}"
    place = importlib.util.find_spec(module)
    if place is None or not arguments:
        return "" if place else f"there is no {module}"
    name = module.removeprefix("benchmarks.") + (".__main__" if place.submodule_search_locations else "")
    program: Any = importlib.import_module(f"benchmarks.{name}")
    begins, _, elsewhere = WORK_OF_BENCHMARKS[name].partition(" in ")
    for each in begins.split(", "):
        _stop(monkeypatch, importlib.import_module(elsewhere) if elsewhere else program, each)
    if "typer" not in vars(program):
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        return _until_work(program.main)
    alone = typer.Typer()
    alone.command()(program.main)
    return _until_work(lambda: CliRunner().invoke(alone, list(arguments)))


def _stop(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
    def reached(*_: Any, **__: Any) -> None:
        raise Reached

    there = getattr(module, name)
    if isinstance(there, dict):  # whose keys are the names that may be given
        for key in there:
            monkeypatch.setitem(there, key, reached)
    else:
        monkeypatch.setattr(module, name, reached)


def _until_work(run: Callable[[], Any]) -> str:
    try:
        done = run()
    except Reached:
        return ""
    except SystemExit as error:
        return f"exit {error.code}"
    output = getattr(done, "output", "")
    return f"{output}{getattr(done, 'exception', '')!r}: its work was not reached"


def _wrong_for_torchrun(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> str:
    found = get_args_parser().parse_args(list(arguments))
    if not (found.module and found.training_script == "qdiff_fx"):
        return f"torchrun would start {found.training_script}"
    return _wrong_for_qdiff(found.training_script_args, monkeypatch)


def _wrong_for_pip(asked: Sequence[str]) -> str:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {extra for each in asked for extra in re.findall(r"\[(\w+)\]", each)}
    return "" if named <= set(extras) else f"{named - set(extras)} are no extras of the package"


def unknown_options(code: str) -> list[str]:
    """Options of a command, mentioned in a sentence, that it does not have: `qdiff tune --target-sise 3MB`."""
    known: Any = typer.main.get_command(app)
    words = [word for word in shlex.split(code)[1:] if word != "COMMAND"]
    if not words[0].startswith("--"):
        if words[0] not in known.commands:
            return words[:1]
        known = known.commands[words[0]]
    options = {each for parameter in known.params for each in parameter.opts}
    return [word for word in words if word.startswith("--") and word not in options | {"--help"}]
