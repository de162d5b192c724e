"""What keeps a network from being captured as it is: training mode, LoRA beside its layers, hooks of others."""

from __future__ import annotations

from torch import nn

from qdiff_fx.errors import CaptureError

_SAME_IN_TRAINING = (
    *(nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict, nn.Identity),
    *(nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.GroupNorm, nn.LayerNorm),
)
_LORA = "merged_adapters"
"""What every layer of peft's has. peft is not asked itself: nobody needs it installed."""


def require_plain(model: nn.Module) -> None:
    """Raises CaptureError, which names module and way out, where a capture would not be of the network itself."""
    merged: tuple[str, ...] = ()
    for path, module in model.named_modules():
        where = path or type(model).__name__
        _check_hooks(where, module)
        if hasattr(module, _LORA):
            _check_lora(where, module)
            merged += (f"{path}.",)
        elif module.training and type(module) not in _SAME_IN_TRAINING and not path.startswith(merged):
            raise CaptureError(
                "is in training mode, where dropout and batch statistics are random",
                where=where,
                fix="Call model.eval() first",
            )


def _check_lora(path: str, layer: nn.Module) -> None:
    """Of a fused one the layer is computed alone; or of one that is switched off."""
    if layer.merged_adapters or getattr(layer, "disable_adapters", False):
        return
    raise CaptureError(
        "a LoRA is computed beside it, which would be quantized as if it were a layer of the network",
        where=path,
        fix="Fuse it into the weights first: pipe.fuse_lora(), then pipe.unload_lora_weights()",
    )


def _check_hooks(path: str, module: nn.Module) -> None:
    """Of accelerate, which moves weights away, and of diffusers, which casts them or leaves blocks out."""
    if hasattr(module, "_hf_hook"):
        raise CaptureError(
            "accelerate moves its weights while it runs (offloading)",
            where=path,
            fix="Call pipe.remove_all_hooks() first; the quantized network is small enough to stay in memory",
        )
    hooks = getattr(getattr(module, "_diffusers_hook", None), "hooks", None)
    if hooks:
        raise CaptureError(
            f"hooks of diffusers change what it computes ({', '.join(map(str, hooks))})",
            where=path,
            fix="Prepare the network before casting, caching or offloading is enabled on it",
        )
