"""Blocks that nothing is done with; each with the reason."""

from __future__ import annotations

from tests.docs.blocks import Block

NOT_RUN = {
    ("adding-a-backend.md", "w_dq   = quantized_decomposed"): "the shape of a graph, not code",
    ("diffusers.md", "prepared.load_lora_adapter"): "tests/lora/test_beside_observers.py does it, on a small network",
    ("steps.md", "quantize(lcm_pipe"): "tests/calibration/test_few_steps.py does it, with pipelines of few steps",
    ("design.md", "nn.Module ──capture──▶"): "a drawing",
}
"""A page and what the block holds → why nothing is done with it."""


def reason(block: Block) -> str:
    """Why nothing is done with a block; empty where something is."""
    return next((why for (page, held), why in NOT_RUN.items() if page == block.page and held in block.text), "")
