"""The start of a process, measured on a small saved network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import typer
import zoo
from safetensors.torch import save_file

from benchmarks.startup import flat, start
from qdiff_fx import save_qdiff


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one_resolution"])
def test_a_process_tells_its_seconds_and_memory(name: str, tmp_path: Path) -> None:
    folder = save_qdiff(zoo.quantized(name), tmp_path / "saved")
    save_file(dict(zoo.captured(name)[1]), tmp_path / "inputs.safetensors")
    found = start(folder, tmp_path / "inputs.safetensors", {"QDIFF_KERNELS": "reference"})
    assert set(found) == {"import_torch", "load", "loaded_rss", "first_step", "peak_rss"}
    assert min(found.values()) > 0
    assert found["peak_rss"] >= found["loaded_rss"] > 1e8  # torch alone takes more


def test_arguments_in_a_mapping_are_named_after_it() -> None:
    text = torch.zeros(2, 3)
    inputs = {"sample": torch.zeros(3, 2).T, "added_cond_kwargs": {"text_embeds": text}}
    found = dict(flat(inputs))
    assert list(found) == ["sample", "added_cond_kwargs.text_embeds"]
    assert all(tensor.is_contiguous() for tensor in found.values())
    assert found["added_cond_kwargs.text_embeds"] is text


def test_a_folder_that_does_not_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="(?s)nothing-here does not run.*the folder does not exist"):
        start(tmp_path / "nothing-here", tmp_path / "inputs.safetensors", {})
