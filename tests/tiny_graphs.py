"""Quantized graphs of networks small enough to check by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import fx, nn

from qdiff_fx import PreparedUNet, QDiffConfig, prepare_qdiff
from qdiff_fx.backends import get_backend
from qdiff_fx.backends.common.reduced_range import fit_products
from qdiff_fx.backends.reference import ReferenceOptions
from qdiff_fx.capture import CapturedGraph, capture
from qdiff_fx.ir.edit import clean, copy_graph
from qdiff_fx.passes.quantize.convert import convert


def alike(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration under which the layers at the boundary of the network are treated like the others."""
    return {"edge_weight_bits": 2, "sample_act_bits": config.get("act_bits", 8)} | config


class Plain(nn.Module):
    """One layer between nothing: `layer(x)`."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class Shortcut(nn.Module):
    """A concat of two tensors of very different size before a 1x1 convolution, and attention behind it."""

    def __init__(self, channels: int = 16):
        super().__init__()
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)
        self.deep = nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut = nn.Conv2d(2 * channels, channels, 1)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.conv_out = nn.Conv2d(channels, 3, 3, padding=1)
        self.time = nn.Linear(1, channels)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        skip = self.conv_in(x)
        h = F.silu(self.deep(F.silu(skip + self.time(t[:, None].to(x.dtype) / 1000)[..., None, None]))) * 50
        h = self.shortcut(torch.cat([h, skip], dim=1))
        tokens = h.flatten(2).transpose(1, 2)
        split = lambda y: y.unflatten(-1, (2, -1)).transpose(1, 2)  # noqa: E731
        mixed = F.scaled_dot_product_attention(
            split(self.to_q(tokens)), split(self.to_k(tokens)), split(self.to_v(tokens))
        )
        return self.conv_out(h + mixed.transpose(1, 2).flatten(2).transpose(1, 2).reshape(h.shape))


_captured: dict[object, CapturedGraph] = {}


def prepare(net: nn.Module, config: QDiffConfig, example: Mapping[str, torch.Tensor], **options: Any) -> PreparedUNet:
    """`prepare_qdiff`, which takes a `Shortcut` that is like an earlier one as that was captured, with its own weights.

    Most tests are about what comes after the capture, which takes longer than all of that.
    """
    if type(net) is not Shortcut:
        return prepare_qdiff(net.eval(), config, example, **options)
    tensors = {**net.state_dict(), **example}
    alike = tuple((name, tuple(each.shape), each.dtype) for name, each in tensors.items())
    if alike not in _captured:
        _captured[alike] = capture(net.eval(), example)
    with mock.patch("qdiff_fx.capture.capture", return_value=_with_weights_of(net, _captured[alike])):
        return prepare_qdiff(net.eval(), config, example, **options)


def _with_weights_of(net: nn.Module, captured: CapturedGraph) -> CapturedGraph:
    gm = copy_graph(captured.module)
    for name, _ in captured.module.named_parameters():
        owner, _, leaf = name.rpartition(".")
        theirs = net.get_parameter(name)
        ours = nn.Parameter(theirs.detach(), requires_grad=theirs.requires_grad)
        gm.get_submodule(owner).register_parameter(leaf, ours)
    return replace(captured, module=gm)


def prepared(net: nn.Module, *inputs: torch.Tensor, calibrated: bool = True, **config: Any) -> PreparedUNet:
    """`net` prepared with its forward arguments named x and t, and calibrated on `inputs`.

    Its few layers are treated alike unless `config` says otherwise, although most are at the boundary of the network.
    """
    names = ("x", "t")
    example = dict(zip(names, inputs, strict=False))
    # Layer outputs too: some tests lower what is prepared here for kernels that quantize them.
    network = prepare(net, QDiffConfig(**alike(config)), example, output_quantizers=True)
    if calibrated:
        with torch.no_grad():
            network(*inputs)
    return network


def qdq_graph(net: nn.Module, *inputs: torch.Tensor, **config: Any) -> fx.GraphModule:
    """The q/dq graph of `net`, calibrated on `inputs`."""
    network = prepared(net, *inputs, **config)
    return convert(network.graph_module, network.qconfig)


def as_taken_by(backend: str, gm: fx.GraphModule) -> fx.GraphModule:
    """`gm`, changed to the activation codes the kernels of `backend` take on this processor: what to judge them by."""
    fit_products(gm, get_backend(backend))
    return clean(gm)


def reference_for(backend: str, **options: Any) -> ReferenceOptions:
    """How `reference` has to be lowered to take the activation codes of `backend` on this processor."""
    return ReferenceOptions(reduce_range=get_backend(backend).saturates(), **options)


def run(module: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    """The only output of a flat graph."""
    with torch.no_grad():
        return module(*inputs)[0]
