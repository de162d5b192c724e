"""Decoders run on integer kernels from end to end: what is left beside them, and what the results depend on."""

from __future__ import annotations

import functools
from collections import Counter

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DecoderTiny
from tiny_graphs import qdq_graph, run
from torch import fx, nn

from qdiff_fx.backends import get_backend
from qdiff_fx.backends.native.backend import NativeOptions
from qdiff_fx.backends.native.fusion.kernels import ATTENTION, CONV, GROUP_NORM, LINEAR, QUANTIZE, QUANTIZE_REST
from qdiff_fx.kernels.activations import Activation
from qdiff_fx.quant.numerics import sqnr_db

aten = torch.ops.aten
KERNELS = {ATTENTION, CONV, GROUP_NORM, LINEAR, QUANTIZE, QUANTIZE_REST}
OF_SIZES = {aten.sym_size.int, aten.reshape.default, aten.permute.default}


def tiny() -> nn.Module:
    """As in TAESD: ReLUs, residual blocks, nearest upsampling, convolutions without bias, a soft clamp before them."""
    return DecoderTiny(
        in_channels=4,
        out_channels=3,
        num_blocks=(2, 1),
        block_out_channels=(32, 32),
        upsampling_scaling_factor=2,
        act_fn="relu",
        upsample_fn="nearest",
    )


def kl() -> nn.Module:
    """As in Stable Diffusion: group norms, SiLU, attention over all pixels with one head."""
    autoencoder = AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
    )
    decoder: nn.Module = autoencoder.decoder
    return decoder


class OfX(nn.Module):
    """A decoder whose argument is called x."""

    def __init__(self, decoder: nn.Module):
        super().__init__()
        self.decoder = decoder

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(x)


BUILT = {"tiny": tiny, "kl": kl}
BITS = pytest.mark.parametrize("bits", [pytest.param(8, marks=pytest.mark.slow), 4])
DECODERS = pytest.mark.parametrize("name", BUILT)


def latents(batch: int = 2, height: int = 8, width: int = 8) -> torch.Tensor:
    return 3 * torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(batch))


@functools.cache
def built(name: str) -> nn.Module:
    """A decoder with random weights; not to be changed."""
    torch.manual_seed(0)
    return OfX(BUILT[name]()).eval()


@functools.cache
def graph(name: str, bits: int) -> fx.GraphModule:
    """Its q/dq graph; not to be changed."""
    return qdq_graph(built(name), latents(), weight_bits=bits)


def lowered(name: str, bits: int = 8, dtype: torch.dtype = torch.float16) -> nn.Module:
    return get_backend("native").lower(graph(name, bits), NativeOptions(dtype)).module


def calls(module: nn.Module) -> list[fx.Node]:
    nodes = module.graph_module.graph.nodes
    return [node for node in nodes if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)]


@BITS
def test_a_tiny_decoder_agrees_with_the_reference(bits: int) -> None:
    expected = run(get_backend("reference").lower(graph("tiny", bits)).module, latents())
    assert sqnr_db(expected, run(lowered("tiny", bits, torch.float32), latents())) > 60
    assert sqnr_db(expected, run(lowered("tiny", bits), latents())) > 45


@BITS
@DECODERS
@torch.no_grad()
def test_it_is_as_near_to_float_as_the_reference(name: str, bits: int) -> None:
    """Behind norms and attention codes flip, and independent roundings differ by 3 dB more than either's error."""
    exact = built(name)(latents())
    reference = run(get_backend("reference").lower(graph(name, bits)).module, latents())
    error = sqnr_db(exact, reference)
    for dtype in (torch.float32, torch.float16):
        actual = run(lowered(name, bits, dtype), latents())
        assert sqnr_db(exact, actual) > error - 0.5
        assert sqnr_db(reference, actual) > error - 3


def test_no_relu_is_left_in_a_tiny_decoder() -> None:
    nodes = calls(lowered("tiny"))
    others = {node.target for node in nodes} - KERNELS - OF_SIZES
    # Of the latents, before the first layer, and of the picture.
    assert others <= {aten.div.Tensor, aten.tanh.default, aten.mul.Tensor, aten.sub.Tensor}
    convs = [node for node in nodes if node.target is CONV]
    assert {node.kwargs["activation"] for node in convs} == {Activation.NONE, Activation.RELU}
    # What is both quantized and added is written in floats and quantized apart: the first layer, the first block of a
    # resolution, each upsampled one. And the latents are two codes.
    assert Counter(node.target for node in nodes)[QUANTIZE] == 4
    assert [node.kwargs["enlarge"] for node in convs].count([2, 2]) == 1


def test_what_is_beside_the_kernels_of_a_decoder_with_attention_concerns_sizes() -> None:
    nodes = calls(lowered("kl"))
    assert {node.target for node in nodes} - KERNELS <= OF_SIZES
    (attention,) = (node for node in nodes if node.target is ATTENTION)
    assert attention.kwargs["out_dtype"] == torch.uint8
    assert [node.kwargs["enlarge"] for node in nodes if node.target is CONV].count([2, 2]) == 1


@BITS
@DECODERS
def test_a_picture_does_not_depend_on_those_beside_it(name: str, bits: int) -> None:
    module, three = lowered(name, bits), latents(3, 7, 10)
    one_by_one = [run(module, three[i : i + 1]) for i in range(3)]
    assert torch.equal(run(module, three), torch.cat(one_by_one))


@DECODERS
def test_a_picture_does_not_depend_on_threads(name: str) -> None:
    module, one = lowered(name), latents(1, 16, 24)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(run(module, one))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
