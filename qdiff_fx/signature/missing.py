"""What a network has that its graph has not: asked for, it is an error that says what to do instead."""

from __future__ import annotations

from qdiff_fx.errors import QDiffError

AGAIN = "Do it to the float network, and prepare and convert that again"
_ATTENTION = "attention is a part of its graph, and runs on kernels of its own"
_FIXED = "its layers are those it was captured with"
_BESIDE = (
    "Load a LoRA beside the network (load_lora_adapter, set_adapters); or load and fuse it into the float "
    "one (fuse_lora, unload_lora_weights), and quantize that"
)
_IP_ADAPTER = "the image's keys and values are a part of its graph, or not, since it was captured"
_NO_MODULES = (
    "it is a graph, not the modules of the network it was captured from",
    "Ask the float network; what is done to its modules is done before it is prepared and converted",
)
_HOOKS = "its graph has no blocks that hooks could be put on"

WHY_NOT: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        ("set_attn_processor", "set_default_attn_processor", "set_attention_backend"),
        (_ATTENTION, AGAIN),
    ),
    "attn_processors": (
        _ATTENTION,
        "Set processors and scales of the float network, and prepare and convert that again; perturbed attention "
        "(PAG), which exchanges them in every call, needs the float network",
    ),
    "post_process_latents": (
        "it is code of the float network beside its forward",
        "Give it back: pipe.prior.post_process_latents = float_prior.post_process_latents",
    ),
    **dict.fromkeys(("fuse_qkv_projections", "unfuse_qkv_projections"), (_ATTENTION, AGAIN)),
    **dict.fromkeys(
        ("enable_freeu", "disable_freeu"), ("FreeU is a part of its graph, or not, since it was captured", AGAIN)
    ),
    **dict.fromkeys(
        ("load_lora_adapter", "save_lora_adapter", "add_adapter", "set_adapter", "set_adapters", "delete_adapters")
        + ("enable_adapters", "disable_adapters", "active_adapters", "enable_lora", "disable_lora", "fuse_lora")
        + ("unfuse_lora", "unload_lora", "load_attn_procs", "save_attn_procs", "enable_lora_hotswap"),
        (_FIXED, _BESIDE),
    ),
    **dict.fromkeys(
        ("_load_ip_adapter_weights", "_load_ip_adapter_loras", "encoder_hid_proj"),
        (_IP_ADAPTER, "Load the IP-Adapter into the float network, set its scale, and quantize that"),
    ),
    **dict.fromkeys(("enable_cache", "disable_cache"), (_HOOKS, "Cache the float network, or nothing")),
    **dict.fromkeys(
        ("enable_layerwise_casting", "enable_group_offload"),
        ("its weights are integers already, and stay where they are", "Leave it out for this network"),
    ),
    **dict.fromkeys(
        ("enable_gradient_checkpointing", "disable_gradient_checkpointing"),
        ("it is not differentiable", "Train the float network"),
    ),
}
"""Why there is no such thing, and the way out, by the names that diffusers asks for."""


class MissingError(QDiffError, AttributeError):
    """An attribute that the network had and its graph has not; `hasattr` is False."""


def missing(name: str, kind: str) -> MissingError:
    """The error for an attribute `name` of a network of class `kind`."""
    why, fix = WHY_NOT.get(name, _NO_MODULES)
    return MissingError(f"there is no {name!r}: {why}", where=kind, fix=fix)
