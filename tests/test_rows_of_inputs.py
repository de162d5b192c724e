"""Which inputs have a row for each sample: found out from the first trace, without tracing again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdiff_fx.capture import tracing
from qdiff_fx.signature.inputs import Size

CHANNELS, HEADS = 8, 2


class Prompted(nn.Module):
    """Cross-attention as diffusers has it: heads are cut by the number of samples, tokens are what is left."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, CHANNELS, 3, padding=1)
        self.key = nn.Linear(CHANNELS, CHANNELS)

    def forward(self, sample: Tensor, prompt: Tensor) -> Tensor:
        def heads(tokens: Tensor) -> Tensor:
            return tokens.view(sample.shape[0], -1, HEADS, CHANNELS // HEADS).transpose(1, 2)

        x = self.first(sample)
        key = heads(self.key(prompt))
        mixed = F.scaled_dot_product_attention(heads(x.flatten(2).transpose(1, 2)), key, key)
        return x + mixed.transpose(1, 2).flatten(2).transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize(("size", "tokens"), [(8, 5), (16, 5), (16, 12)])
def test_a_prompt_is_no_table_whatever_the_sizes(size: int, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tokens, traced as the prime 13 beside images of 16, once made up for a wrong number of rows."""
    traces = []
    trace = tracing._trace

    def counted(*given: Any) -> Any:
        traces.append(1)
        return trace(*given)

    monkeypatch.setattr(tracing, "_trace", counted)
    example = {"sample": torch.randn(2, 4, size, size), "prompt": torch.randn(2, tokens, CHANNELS)}
    found = tracing.capture(Prompted().eval(), example)
    assert len(traces) == 1
    assert [spec.dims[0] for spec in found.signature.inputs] == [Size("batch")] * 2
