"""Which activations get a table of scales over the timesteps, and which one scale."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import fx, nn

from qdiff_fx import QDiffConfig, calibrate, convert_qdiff, prepare_qdiff

qd = torch.ops.quantized_decomposed
INPUTS = {
    "sample": torch.randn(2, 4, 8, 8),
    "timestep": torch.tensor([30.0, 900.0]),
    "prompt": torch.randn(2, 6),
}


class Conditioned(nn.Module):
    """Three layers: one reads the sample, one the timestep, one the prompt alone."""

    def __init__(self):
        super().__init__()
        self.of_sample = nn.Conv2d(4, 8, 3, padding=1)
        self.of_timestep = nn.Linear(1, 8)
        self.of_prompt = nn.Linear(6, 8)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, sample, timestep, prompt):
        shift = self.of_timestep(timestep[:, None] / 1000) + self.of_prompt(prompt)
        return self.last(F.silu(self.of_sample(sample) + shift[:, :, None, None]))


def tables(config: QDiffConfig) -> dict[str, bool]:
    """Module path of each layer -> whether what it reads is quantized by a table."""
    torch.manual_seed(0)
    prepared = prepare_qdiff(Conditioned().eval(), config, INPUTS)
    calibrate(prepared, [INPUTS], progress=False)
    graph: fx.GraphModule = convert_qdiff(prepared, "reference").graph_module
    overloads = (qd.dequantize_per_tensor.default, qd.dequantize_per_tensor.tensor)
    weights = {node.target: node for node in graph.graph.nodes if node.op == "get_attr"}
    found = {}
    for name in ("of_sample", "of_timestep", "of_prompt", "last"):
        (weight,) = (node for target, node in weights.items() if target == f"{name}.weight_codes")
        layer = next(iter(next(iter(weight.users)).users))
        (activation,) = (node for node in layer.all_input_nodes if node.target in overloads)
        found[name] = activation.target is qd.dequantize_per_tensor.tensor
    return found


def test_what_the_conditioning_alone_decides_has_none():
    config = QDiffConfig(sample_act_bits=8)
    assert tables(config) == {"of_sample": True, "of_timestep": True, "of_prompt": False, "last": True}


def test_nothing_has_one_where_the_configuration_asks_for_one_scale():
    assert not any(tables(QDiffConfig(sample_act_bits=8, act_granularity="tensor")).values())
