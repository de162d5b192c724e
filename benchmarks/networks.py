"""The networks that are measured, each with one step's inputs.

Trained weights where they exist (`anime`, `digits`), otherwise random ones under a fixed seed: a step takes as long
whatever the weights are, as long as activations stay finite and normal.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import nn
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from qdiff_fx.evaluation import predict

SHARED_VARIABLE = "QDIFF_SHARED"
WEIGHT_SEED = 0


# Without storage, attention decomposes into batched matmuls, and nothing else in a UNet is one.
ATTENTION_OPS = (torch.ops.aten.bmm, torch.ops.aten.baddbmm)


class Work(NamedTuple):
    """Operations of one step in 10⁹, a multiply-add counted as two: of convs and linears, and of attention."""

    gflop: float
    attention_gflop: float


@dataclass(frozen=True)
class Network:
    """A UNet and the shape of one measured step.

    Attributes:
        build: makes the FP32 network in eval mode; ``build(meta=True)`` one without storage.
        batch: images per step.
        sample_shape: (C, H, W) of one image or latent.
        context_shape: (tokens, width) of the cross-attention conditioning, or None.
        num_train_timesteps: length of the training schedule.
        dtype: of its weights and inputs.
        added: shapes, without the batch, of what else is added to the time embedding (`added_cond_kwargs`).
        together: how many backends of this network fit in memory at a time.
    """

    name: str
    build: Callable[[bool], nn.Module]
    batch: int
    sample_shape: tuple[int, int, int]
    context_shape: tuple[int, int] | None = None
    num_train_timesteps: int = 1000
    together: int = 16
    dtype: torch.dtype = torch.float32
    added: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def inputs(self, seed: int = 0) -> dict[str, Any]:
        """One step's `forward` arguments: unit-normal sample and context, and a timestep, the same for every image."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(self.batch, *shape, generator=generator).to(self.dtype)

        inputs: dict[str, Any] = {
            "sample": normal(*self.sample_shape),
            "timestep": torch.randint(self.num_train_timesteps, (1,), generator=generator).repeat(self.batch),
        }
        if self.context_shape is not None:
            inputs["encoder_hidden_states"] = normal(*self.context_shape)
        if self.added:
            inputs["added_cond_kwargs"] = {name: normal(*shape) for name, shape in self.added}
        return inputs

    @property
    def folder(self) -> str:
        """Where what is prepared of it belongs; networks of the same weights share it."""
        return self.name

    def pieces(self, batches: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """What of the calibration data reconstruction learns from: all of it."""
        return batches

    def finer(self, prepared: Any, batches: Sequence[Mapping[str, Any]]) -> Any:
        """The calibrated network with finer bits where it matters most, if users get it like that."""
        return prepared

    def predict(
        self, run: Callable[..., Any], sample: torch.Tensor, timestep: Any = None, **conditioning: Any
    ) -> torch.Tensor:
        """What the network, or what stands for it, makes of one step's inputs."""
        return predict(run, sample, timestep, **conditioning)

    def work(self) -> Work:
        """The floating-point operations of one step, counted on tensors without storage."""
        inputs = tree_map(lambda tensor: tensor.to("meta"), self.inputs())
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.build(True)(**inputs)
        counts = counter.get_flop_counts()["Global"]
        attention = sum(flops for op, flops in counts.items() if op in ATTENTION_OPS)
        return Work((sum(counts.values()) - attention) / 1e9, attention / 1e9)


def get_network(name: str) -> Network:
    """The network of that name; raises ValueError with the known names."""
    from benchmarks.decoders import DECODERS  # which are networks themselves

    known = {**NETWORKS, **DECODERS}
    if name not in known:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(known)}")
    return known[name]


def shared_folder() -> Path:
    """Where the trained networks are: $QDIFF_SHARED, or `../shared` beside the checkout."""
    folder = os.environ.get(SHARED_VARIABLE) or Path(__file__).resolve().parents[2] / "shared"
    return Path(folder)


def shared_module(name: str) -> ModuleType:
    """The loader `models/NAME/model.py` of the shared folder; raises FileNotFoundError saying where it looked."""
    source = shared_folder() / "models" / name / "model.py"
    if not source.is_file():
        raise FileNotFoundError(f"{source} is missing; point {SHARED_VARIABLE} at the folder of models/{name}")
    spec = importlib.util.spec_from_file_location(f"shared_{name.replace('-', '_')}", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _anime(meta: bool) -> nn.Module:
    module = shared_module("anime-ddpm-64")
    if not meta:
        return module.load_unet()
    with torch.device("meta"):
        return module.build_unet()


def _digits(meta: bool) -> nn.Module:
    from qdiff_fx.bundled.digits import load_digits_unet

    unet: Any = load_digits_unet()
    return unet.to("meta") if meta else unet


def randomly(make: Callable[[], Any]) -> Callable[[bool], nn.Module]:
    """A builder that fills the network with random weights, skipping the slow default initialisation."""

    def build(meta: bool) -> nn.Module:
        with torch.device("meta"):
            unet = make().eval()
        return unet if meta else _fill(unet.to_empty(device="cpu"))

    return build


def _fill(unet: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(WEIGHT_SEED)
    for name, parameter in unet.named_parameters():
        fill_tensor(name, parameter, generator)
    return unet


@torch.no_grad()
def fill_tensor(name: str, parameter: torch.Tensor, generator: torch.Generator) -> None:
    """Weights of variance 1 / fan-in keep activations of unit scale; norms stay neutral."""
    if name.endswith("bias"):
        parameter.zero_()
    elif parameter.ndim == 1:
        parameter.fill_(1)
    else:
        parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)


def _cifar10() -> Any:
    """The configuration of google/ddpm-cifar10-32 (35.7 M parameters)."""
    return UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        block_out_channels=(128, 256, 256, 256),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    )


def _sd15(**changes: Any) -> Any:
    """The configuration of Stable Diffusion 1.5 (860 M parameters)."""
    config: dict[str, Any] = {
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "norm_num_groups": 32,
    }
    return UNet2DConditionModel(**(config | changes))


def _sd_turbo() -> Any:
    """The configuration of SD-Turbo, which is Stable Diffusion 2.1's (866 M parameters)."""
    return _sd15(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True)


def _sd_tiny() -> Any:
    """The layout of Stable Diffusion 1.5 at a thousandth of its size, to try the machinery on."""
    return _sd15(
        sample_size=16,
        block_out_channels=(16, 32, 32, 32),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=4,
    )


def _sdxl(**changes: Any) -> Any:
    """The configuration of Stable Diffusion XL's base (2.6 B parameters), in half precision."""
    config: dict[str, Any] = {
        "sample_size": 128,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    unet: Any = UNet2DConditionModel(**(config | changes))
    return unet.half()


def _sdxl_tiny() -> Any:
    """The layout of Stable Diffusion XL at a thousandth of its size, to try the machinery on."""
    return _sdxl(
        sample_size=16,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(1, 2, 4),
        cross_attention_dim=32,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=80,
        norm_num_groups=4,
    )


HALF = torch.float16
SDXL_ADDED = (("text_embeds", (1280,)), ("time_ids", (6,)))
SDXL_TINY_ADDED = (("text_embeds", (32,)), ("time_ids", (6,)))

NETWORKS = {
    network.name: network
    for network in (
        Network("anime", _anime, batch=4, sample_shape=(3, 64, 64), num_train_timesteps=300),
        Network("anime-b1", _anime, batch=1, sample_shape=(3, 64, 64), num_train_timesteps=300),
        Network("cifar10", randomly(_cifar10), batch=4, sample_shape=(3, 32, 32)),
        Network("cifar10-b1", randomly(_cifar10), batch=1, sample_shape=(3, 32, 32)),
        Network("sd15", randomly(_sd15), 2, (4, 64, 64), context_shape=(77, 768), together=3),
        Network("sd-turbo", randomly(_sd_turbo), 1, (4, 64, 64), context_shape=(77, 1024), together=3),
        Network("digits", _digits, batch=4, sample_shape=(1, 32, 32), context_shape=(4, 64)),
        Network("sd-tiny", randomly(_sd_tiny), 2, (4, 16, 16), context_shape=(8, 32)),
        Network("sdxl", randomly(_sdxl), 2, (4, 128, 128), (77, 2048), together=1, dtype=HALF, added=SDXL_ADDED),
        Network("sdxl-tiny", randomly(_sdxl_tiny), 2, (4, 16, 16), (8, 32), dtype=HALF, added=SDXL_TINY_ADDED),
    )
}
