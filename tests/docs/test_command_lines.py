"""Every command line in README and docs takes the options and values that it is shown with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.blocks import Block, blocks, inline_code
from tests.docs.command_lines import commands, unknown_options, wrong

SHELL = [block for block in blocks() if block.language == "sh"]
SENTENCES = sorted({code for _, code in inline_code() if "python -m " in code and "…" not in code})
MENTIONED = sorted({code for _, code in inline_code() if code.startswith("qdiff ") and "…" not in code})


def all_wrong(text: str) -> list[str]:
    found = []
    for words in commands(text):
        with pytest.MonkeyPatch.context() as patched:
            found.append((words, wrong(words, patched)))
    return [f"{' '.join(words)}: {what}" for words, what in found if what]


@pytest.fixture
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_in_an_empty_folder")
@pytest.mark.parametrize("block", SHELL, ids=str)
def test_every_line_gets_as_far_as_its_work(block: Block) -> None:
    assert commands(block.text)
    assert all_wrong(block.text) == []


@pytest.mark.usefixtures("_in_an_empty_folder")
@pytest.mark.parametrize("code", SENTENCES)
def test_so_does_what_is_mentioned(code: str) -> None:
    assert all_wrong(code) == []


def test_commands_that_are_mentioned_have_their_options() -> None:
    assert {code: unknown_options(code) for code in MENTIONED if unknown_options(code)} == {}
    assert unknown_options("qdiff tune --target-sise 3MB") == ["--target-sise"]
    assert unknown_options("qdiff tuna") == ["tuna"]


@pytest.mark.usefixtures("_in_an_empty_folder")
@pytest.mark.parametrize(
    "line",
    [
        "qdiff quantize digits --weight-bits 4",  # no --out
        "qdiff quantize digits --weight-bit 4 --out x",
        "qdiff quantize digits --weight-bits 9 --out x",
        "qdiff quantize digits --rounding nearst --out x",
        "qdiff quantize digits --parts unet,vea --out x",
        "qdiff quantize digits --config not-there.json --out x",
        "qdiff tune digits --target-size 30MG --out x",
        "qdiff eval x --backend nativ",
        "qdiff quantise digits --out x",
        "python -m benchmarks.unet_step --models sd15 --backends nativ",
        "python -m benchmarks.unet_step --models sd16",
        "python -m benchmarks.fidelity --model animes",
        "python -m benchmarks.paper ablations --steps 10",
        "python -m benchmarks.startup --models anime,sd15 --variants w8x8",
        "python -m benchmarks.profile_step --model sd16",
        "python -m benchmarks.enough_data digits --only row",
        "python -m benchmarks.rounding --tome 4 4",
        "python -m benchmarks.nothing",
        "python -m tests.pipelines Kandinski",
        "torchrun --nproc-per-node 4 -m qdiff_fx quantize digits",
        "make tests",
        "pip install '.[pipeline]'",
        "qdif doctor",
    ],
)
def test_what_is_wrong_is_found(line: str) -> None:
    assert len(all_wrong(line)) == 1
