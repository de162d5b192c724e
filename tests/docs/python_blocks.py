"""How the Python blocks of README and docs are executed.

A block runs in an empty folder, after the imports of its page's earlier blocks, with `qdiff_fx` and what `given` names:
fixtures of conftest.py. What stands for a path, an image or a hub is one of theirs too.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any

from tests.docs.blocks import Block, blocks


@dataclass(frozen=True)
class Run:
    """One block.

    Attributes:
        page, holds: where it is, and a part of it by which it is found.
        given: its names → fixtures.
        around: further fixtures: a folder that it reads, a hub.
        edits: what is put in another's place, so that it takes seconds, or because only a person could know it.
        leaves: files that are there afterwards.
        quick: it takes few seconds.
    """

    page: str
    holds: str
    given: dict[str, str] = field(default_factory=dict)
    around: tuple[str, ...] = ()
    edits: dict[str, str] = field(default_factory=dict)
    leaves: tuple[str, ...] = ()
    quick: bool = False


FLOAT = {"pipe": "float_pipe", "prompts": "prompts", "prompt": "prompt"}
QUANTIZED = {"pipe": "quantized_pipe"}
FOLDER = ("pipeline_folder",)

RUNS = (
    Run(
        "README.md",
        "qdiff_fx.quantize(pipe",
        around=FOLDER,
        leaves=("pipeline-w4a8/model_index.json",),
    ),
    Run(
        "README.md",
        "collect_calibration_data",
        FLOAT,
        edits={"num_inference_steps=25": "num_inference_steps=2"},
        leaves=("unet-w4a8/qdiff.json",),
    ),
    Run("diffusers.md", 'quantize(pipe, "w4a8", prompts', FLOAT),
    Run(
        "diffusers.md",
        "calibrating(pipe)",
        {"pipe": "image_pipe", "pairs": "pairs"},
        edits={"image=image": "image=image, num_inference_steps=4"},
    ),
    Run("diffusers.md", "PipelineQuantizationConfig", around=FOLDER),
    Run("diffusers.md", "optimize_schedule", FLOAT),
    Run("diffusers.md", "load_lora_weights", QUANTIZED, ("lora_file",)),
    Run("diffusers.md", "save_pretrained", QUANTIZED, leaves=("sd-w4a8/unet/network.qdiff/qdiff.json",)),
    Run("diffusers.md", "push_to_hub", {**QUANTIZED, "hub": "hub"}, edits={'"a commit"': 'hub.last("owner/unet")'}),
    Run("export.md", "export_qdiff", {"pipe": "small_pipe"}, leaves=("unet.onnx", "unet.pt2")),
    Run("index.md", "qdiff_fx.quantize", FLOAT),
    Run(
        "pipelines.md",
        'parts="unet,vae"',
        {**FLOAT, "another": "another_pipe"},
        edits={"quantize(\n    pipe, {": "quantize(\n    another, {"},
    ),
    Run(
        "reconstruction.md",
        "reconstruct(prepared",
        {"prepared": "prepared", "data": "data"},
        edits={"ReconstructionConfig.fast()": "ReconstructionConfig(weight_steps=4, act_steps=4)"},
        quick=True,
    ),
    Run("steps.md", "optimize_schedule", FLOAT),
    Run("steps.md", "guidance_until", {"pipe": "float_pipe", "prompt": "prompt"}),
)


def run_of(block: Block) -> Run | None:
    """How a block is executed; None where nobody says."""
    found = [run for run in RUNS if run.page == block.page and run.holds in block.text and block.language == "python"]
    assert len(found) < 2, f"{block} is listed twice"
    return found[0] if found else None


def execute(block: Block, run: Run, names: dict[str, Any]) -> dict[str, Any]:
    """Run a block; returns what its names became."""
    text = block.text
    for shown, instead in run.edits.items():
        assert shown in text, f"{block} has no {shown!r}"
        text = text.replace(shown, instead)
    names = {"__name__": "__main__", **names}
    exec(compile(_imports_before(block), str(block), "exec"), names)
    exec(compile(text, str(block), "exec"), names)
    return names


def _imports_before(block: Block) -> ast.Module:
    """Of the page, and of the package itself."""
    found: list[ast.stmt] = list(ast.parse("import qdiff_fx").body)
    for each in blocks():
        if each.page == block.page and each.language == "python" and each.number < block.number:
            found += [line for line in ast.parse(each.text).body if isinstance(line, (ast.Import, ast.ImportFrom))]
    return ast.Module(found, [])
