"""Hooks on a network whose modules do not run: the call that sets them says so, and what would run without is kept."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from torch import nn

from qdiff_fx.errors import QDiffError

_OF_DIFFUSERS, _REGISTRY = "diffusers.hooks.", "diffusers.hooks.hooks"
_MOVES_WEIGHTS = "AlignDevicesHook"
_LORA_OF_TEXT = "_load_lora_into_text_encoder"


class WithoutHooksInside(nn.Module):
    """A module that is hooked as a whole or not at all.

    Its own forward hooks are called as any module's are. Whatever looks for blocks inside it, to cache, cast or offload
    them, would find none and do nothing, or move tensors away from under the graph.
    """

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        self._check_who_asks(sys._getframe(1))
        children: Iterator[tuple[str, nn.Module]] = super().named_children()
        return children

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        self._check_who_asks(sys._getframe(1))
        modules: Iterator[tuple[str, nn.Module]] = super().named_modules(*args, **kwargs)
        return modules

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_hf_hook" and any(type(each).__name__ == _MOVES_WEIGHTS for each in _single(value)):
            raise QDiffError(
                "accelerate cannot move its weights away while it does not run (sequential offloading)",
                where=type(self).__name__,
                fix="Use pipe.enable_model_cpu_offload(), or leave the network out: "
                "pipe._exclude_from_cpu_offload.append('unet')",
            )
        super().__setattr__(name, value)

    @contextmanager
    def cache_context(self, name: str, **kwargs: Any) -> Iterator[None]:
        """What pipelines say about each call to caches that are between blocks: there are none."""
        yield

    def _check_who_asks(self, frame: FrameType) -> None:
        module = str(frame.f_globals.get("__name__", ""))
        if frame.f_code.co_name == _LORA_OF_TEXT:
            raise QDiffError(
                "a LoRA cannot be loaded into it: it is a text encoder that is one graph",
                where=type(self).__name__,
                fix="Load and fuse the LoRA into the float one (fuse_lora, unload_lora_weights), and quantize that; or "
                "leave text encoders in float: parts='unet,vae'",
            )
        if module.startswith(_OF_DIFFUSERS) and module != _REGISTRY:
            raise QDiffError(
                f"{frame.f_code.co_name} of diffusers finds no blocks to put its hooks on: it is one graph",
                where=type(self).__name__,
                fix="Leave it out for this network; the native backend remembers what does not change between steps",
            )


def refuse_hooks_inside(module: nn.Module, where: str) -> None:
    """Raises QDiffError if somebody put forward hooks on a module that describes the network, and does not run."""
    if module._forward_hooks or module._forward_pre_hooks:
        raise QDiffError(
            "forward hooks on its graph_module would never be called: the backend's own module runs",
            where=where,
            fix="Put them on the network itself, or watch the layers of the float network",
        )


def _single(hook: Any) -> list[Any]:
    """The hooks that accelerate joined in one."""
    return [hook, *getattr(hook, "hooks", ())]
