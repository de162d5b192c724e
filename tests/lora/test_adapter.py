"""What LoRA files call their matrices, and how much these count."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from qdiff_fx.errors import ConfigError
from qdiff_fx.lora import read_adapter

DOWN, UP = torch.arange(8.0).view(2, 4), torch.arange(6.0).view(3, 2)


def product(tensors: dict[str, Tensor], path: str = "mid.to_q", **options: Any) -> Tensor:
    branch = read_adapter(tensors, **options).layers[path]
    return branch.up @ branch.down


@pytest.mark.parametrize(
    ("down", "up"),
    [
        ("mid.to_q.lora_A.weight", "mid.to_q.lora_B.weight"),
        ("mid.to_q.lora_A.default.weight", "mid.to_q.lora_B.default.weight"),
        ("mid.to_q.lora.down.weight", "mid.to_q.lora.up.weight"),
        ("mid.processor.to_q_lora.down.weight", "mid.processor.to_q_lora.up.weight"),
    ],
)
def test_names_of_peft_and_of_diffusers_old_and_new(down: str, up: str) -> None:
    tensors = {f"unet.{down}": DOWN, f"unet.{up}": UP, "text_encoder.q.lora_A.weight": DOWN}
    assert torch.equal(product(tensors), UP @ DOWN)


NAMED = {"mid.to_q.lora_A.weight": DOWN.half(), "mid.to_q.lora_B.weight": UP.half()}


@pytest.mark.parametrize(
    ("more", "options", "scale"),
    [
        ({}, {}, 1.0),
        ({"mid.to_q.alpha": torch.tensor(8.0)}, {}, 4.0),
        ({}, {"alphas": {"mid.to_q.alpha": 1.0}}, 0.5),
        ({}, {"metadata": {"lora_alpha": 6, "r": 2}}, 3.0),
        ({}, {"metadata": {"lora_alpha": 6, "alpha_pattern": {"to_q": 2}}}, 1.0),
        ({}, {"metadata": {"lora_alpha": 6, "alpha_pattern": {"^mid.to_q": 4, "q": 9}}}, 2.0),
        ({}, {"metadata": {"lora_alpha": 6, "use_rslora": True}}, 6 / math.sqrt(2)),
    ],
)
def test_alpha(more: dict[str, Tensor], options: dict[str, Any], scale: float) -> None:
    found = product({**NAMED, **more}, prefix=None, **options)
    torch.testing.assert_close(found, UP @ DOWN * scale)


def test_the_prefix_is_also_that_of_what_lies_beside() -> None:
    tensors = {f"unet.{name}": each for name, each in NAMED.items()}
    found = product(tensors, alphas={"unet.mid.to_q.alpha": 1.0, "text_encoder.mid.to_q.alpha": 9.0})
    torch.testing.assert_close(found, UP @ DOWN / 2)
    found = product(tensors, metadata={"unet.lora_alpha": 1, "text_encoder.lora_alpha": 9})
    torch.testing.assert_close(found, UP @ DOWN / 2)


@pytest.mark.parametrize(
    ("tensors", "options", "says"),
    [
        ({"mid.lora_A.weight": DOWN}, {}, "LoRA, mid: it has no lora_B"),
        ({"mid.lora_B.weight": DOWN}, {}, "LoRA, mid: it has no lora_A"),
        ({**NAMED, "mid.to_q.lora_magnitude_vector": UP}, {}, "lora_magnitude_vector: it is no matrix of a plain LoRA"),
        ({**NAMED, "mid.to_q.lora_B.bias": UP}, {}, r"lora_B.bias: it is no matrix of a plain LoRA"),
        ({"mid.lokr_w1": DOWN}, {}, "mid.lokr_w1: it is no matrix of a plain LoRA"),
        (NAMED, {"metadata": {"use_dora": True}}, "it is a DoRA"),
    ],
)
def test_what_is_no_plain_lora_is_refused(tensors: dict[str, Tensor], options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_adapter(tensors, prefix=None, **options)
