"""Lines of what people do to a pipeline of Stable Diffusion, before its UNet is quantized and after."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache, apply_layerwise_casting
from diffusers.models.attention_processor import AttnProcessor
from torch import nn

from tests.pipelines.images import prompted, stable_diffusion
from tests.pipelines.line import Act, Line
from tests.pipelines.parts import TEXT, image_encoder, image_processor, rows
from tests.pipelines.transformers import FLUX, flux

ACCELERATE, PEFT = ("accelerate",), ("peft",)


def network(change: Callable[[Any], Any]) -> Act:
    """What replaces the pipeline's network by what `change` makes of it."""

    def act(pipe: Any) -> None:
        pipe.unet = change(pipe.unet)

    return act


def through_a_file(unet: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(unet, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def own_state(unet: nn.Module) -> nn.Module:
    unet.load_state_dict(unet.state_dict())
    return unet


def _predicted(unet: nn.Module) -> torch.Tensor:
    torch.set_num_threads(1)
    with torch.no_grad():
        return unet(torch.ones(1, 4, 16, 16, dtype=unet.dtype), 5, rows(1, 24, TEXT).to(unet.dtype))[0]


def in_another_process(pipe: Any) -> None:
    """A process that knows nothing of this one gets the network, and predicts what it does here."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as there:
        assert torch.equal(there.submit(_predicted, pipe.unet).result(), _predicted(pipe.unet))


def hooked(pipe: Any) -> None:
    pipe.unet.register_forward_pre_hook(lambda module, args: None)
    seen = []
    pipe.unet.register_forward_hook(lambda module, args, output: seen.append(output))
    pipe("a", num_inference_steps=1, output_type="latent")
    assert seen


def lora(pipe: Any) -> None:
    from peft import LoraConfig

    config = LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same one every time
        pipe.unet.add_adapter(config)


def fused_lora(pipe: Any) -> None:
    lora(pipe)
    pipe.fuse_lora(components=["unet"])


def unloaded_lora(pipe: Any) -> None:
    fused_lora(pipe)
    pipe.unload_lora_weights()


def lora_file(pipe: Any) -> None:
    """Load a LoRA as one finds them."""
    other = stable_diffusion()
    lora(other)
    from peft.utils import get_peft_model_state_dict

    with tempfile.TemporaryDirectory() as folder:
        type(other).save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(other.unet))
        pipe.load_lora_weights(folder)


def ip_state(unet: Any) -> dict[str, Any]:
    """Keys and values of every cross-attention, numbered as IP-Adapter's files number them."""
    weights, number = {}, 1
    for name in unet.attn_processors:
        if name.endswith("attn2.processor"):
            attention = unet.get_submodule(name.removesuffix(".processor"))
            for kind in ("k", "v"):
                weights[f"{number}.to_{kind}_ip.weight"] = torch.randn(attention.to_k.out_features, TEXT) / 5
            number += 2
    projection = {
        "proj.weight": torch.randn(4 * TEXT, TEXT) / 4,
        "proj.bias": torch.zeros(4 * TEXT),
        "norm.weight": torch.ones(TEXT),
        "norm.bias": torch.zeros(TEXT),
    }
    return {"image_proj": projection, "ip_adapter": weights}


def with_ip_adapter() -> Any:
    pipe = stable_diffusion(feature_extractor=image_processor(), image_encoder=image_encoder())
    pipe.load_ip_adapter(ip_state(pipe.unet), subfolder=None, weight_name=None, image_encoder_folder=None)
    pipe.set_ip_adapter_scale(0.7)
    return pipe


def in_autocast(pipe: Any) -> Any:
    """The pipeline, called under autocast."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return pipe(*args, **kwargs)

    return call


def vae_in_float32(pipe: Any) -> None:
    pipe.vae.to(torch.float32)


def first_block_cache(pipe: Any) -> None:
    """On the transformer of Flux: diffusers has none for UNets."""
    apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig(threshold=0.1))


def layerwise_casting(pipe: Any) -> None:
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=pipe.unet.dtype)


def layerwise_casting_of_hooks(pipe: Any) -> None:
    apply_layerwise_casting(pipe.unet, torch.float8_e4m3fn, pipe.unet.dtype)


def model_offload(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def sequential_offload(pipe: Any) -> None:
    """What `enable_sequential_cpu_offload` does to each network; diffusers wants a GPU for it."""
    import accelerate

    accelerate.cpu_offload(pipe.unet, execution_device=torch.device("cpu"))


def freeu(pipe: Any) -> None:
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)


def both_ways(name: str, act: Act, **more: Any) -> list[Line]:
    """Done before the network is quantized, and after."""
    return [
        Line(f"{name}, before", stable_diffusion, prompted(), before=act, **more),
        Line(f"{name}, after", stable_diffusion, prompted(), after=act, **more),
    ]


def before(name: str, act: Act, **more: Any) -> Line:
    return Line(name, stable_diffusion, prompted(), before=act, **more)


def after(name: str, act: Act, **more: Any) -> Line:
    return Line(name, stable_diffusion, prompted(), after=act, **more)


IMAGE_EMBEDDING = {"ip_adapter_image_embeds": [torch.cat([torch.zeros(1, 1, TEXT), rows(1, 1, TEXT)])]}

LINES = [
    *both_ways("`enable_freeu`", freeu),
    *both_ways("`fuse_qkv_projections`", lambda pipe: pipe.fuse_qkv_projections()),
    *both_ways("`set_attn_processor`", lambda pipe: pipe.unet.set_attn_processor(AttnProcessor())),
    *both_ways("`enable_attention_slicing`", lambda pipe: pipe.enable_attention_slicing(1)),
    Line("`cross_attention_kwargs` with a number", stable_diffusion, prompted(cross_attention_kwargs={"scale": 0.5})),
    *both_ways("`pipe.to(torch.float16)`", lambda pipe: pipe.to(torch.float16)),
    *both_ways("`pipe.to(torch.bfloat16)`", lambda pipe: pipe.to(torch.bfloat16)),
    before("`pipe.vae.to(torch.float32)`", vae_in_float32),
    after("`torch.autocast`", in_autocast),
    before("LoRA, not fused", lora, needs=PEFT),
    before("LoRA, after `fuse_lora`", fused_lora, needs=PEFT),
    before("LoRA, after `fuse_lora` and `unload_lora_weights`", unloaded_lora, needs=PEFT),
    after("`load_lora_weights`, after", lora_file, needs=PEFT),
    Line("IP-Adapter", with_ip_adapter, prompted(**IMAGE_EMBEDDING)),
    Line(
        "`set_ip_adapter_scale`, after",
        with_ip_adapter,
        prompted(**IMAGE_EMBEDDING),
        after=lambda pipe: pipe.set_ip_adapter_scale(0.3),
    ),
    *both_ways("`enable_model_cpu_offload`", model_offload, needs=ACCELERATE),
    *both_ways("`enable_sequential_cpu_offload`", sequential_offload, needs=ACCELERATE),
    *both_ways("`enable_layerwise_casting`", layerwise_casting),
    after("`apply_layerwise_casting`, after", layerwise_casting_of_hooks),
    Line("`apply_first_block_cache`, before", flux, FLUX, before=first_block_cache),
    Line("`apply_first_block_cache`, after", flux, FLUX, after=first_block_cache),
    *both_ways("forward hooks", hooked),
    after("`copy.deepcopy`", network(copy.deepcopy)),
    after("`pickle`", network(lambda unet: pickle.loads(pickle.dumps(unet)))),
    after("`torch.save` and `torch.load`", network(through_a_file)),
    after("`state_dict` and `load_state_dict`", network(own_state)),
    after("`multiprocessing`, spawned", in_another_process),
]
