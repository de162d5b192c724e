"""What a person does first, with the installed package alone: run in each environment, prints what came of it as JSON.

python -P smoke.py examples/quantize_pipeline.py
"""

from __future__ import annotations

import json
import os
import platform
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import qdiff_fx

SHOWN = ("torch", "diffusers", "transformers", "numpy")
DRAW = """
import sys
import numpy, torch
import qdiff_fx
from diffusers import DiffusionPipeline
def drawn(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe("a fish", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np").images
if __name__ == "__main__":
    numpy.save("again.npy", drawn(DiffusionPipeline.from_pretrained(sys.argv[1])))
"""
"""A process of its own: what it knows of quantized networks it knows from importing the package."""


def quantized_pipeline(example: str) -> Any:
    """A tiny one, with random weights."""
    pipe = runpy.run_path(example)["tiny_pipeline"]()
    return qdiff_fx.quantize(pipe, "w4a8", ["a fish"], budget=None, steps=2, progress=False)


def loads_again(pipe: Any) -> None:
    """The same image from the saved pipeline, in a fresh process."""
    import numpy

    Path("draw.py").write_text(DRAW)
    image = runpy.run_path("draw.py", run_name="draw")["drawn"](pipe)
    pipe.save_pretrained("saved")
    subprocess.run([sys.executable, "draw.py", "saved"], check=True)
    assert (numpy.load("again.npy") == image).all(), "another image"


def exports(pipe: Any) -> None:
    """ONNX that its checker takes, and a program that computes."""
    import onnx

    onnx.checker.check_model(qdiff_fx.export_qdiff(pipe.unet, "unet.onnx"))
    inputs = (torch.randn(2, 4, 16, 16), torch.tensor([3.0, 3.0]), torch.randn(2, 24, 32))
    (found,) = torch.export.load(qdiff_fx.export_qdiff(pipe.unet, "unet.pt2")).module()(*inputs)
    expected = pipe.unet.with_backend("reference")(*inputs).sample
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02 * float(expected.std()))


def digits() -> None:
    """The bundled network, from the command line."""
    quantize = "quantize digits --weight-bits 4 --samples 1 --steps 3 --out digits"
    for arguments in ("doctor", quantize, "eval digits --images 1 --steps 3 --json eval.json"):
        subprocess.run([sys.executable, "-m", "qdiff_fx", *arguments.split()], check=True, stdout=subprocess.DEVNULL)
    decibels = json.loads(Path("eval.json").read_text())["eps_sqnr_db"]["native"]["mean"]
    assert decibels > 20, f"{decibels:.1f} dB"


def tried(work: Callable[[], Any]) -> str:
    """What went wrong, in a line; empty if nothing did."""
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0][:300]
    return ""


def main() -> None:
    """Print versions, and of each job what went wrong."""
    example = str(Path(sys.argv[1]).resolve())
    made: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        jobs: dict[str, Callable[[], Any]] = {
            "quantize": lambda: made.append(quantized_pipeline(example)),
            "save, load": lambda: loads_again(made[0]),
            "export": lambda: exports(made[0]),
            "digits": digits,
        }
        results = {name: tried(job) for name, job in jobs.items()}
        os.chdir("/")
    versions = {"python": platform.python_version(), **{name: version(name) for name in SHOWN}}
    print(json.dumps({"versions": versions, "results": results}))


if __name__ == "__main__":
    main()
