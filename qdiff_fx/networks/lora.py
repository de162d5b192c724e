"""LoRA beside integer layers, by the names that diffusers has for it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from qdiff_fx.errors import ConfigError
from qdiff_fx.lora import Adapters, read_adapter
from qdiff_fx.passes.low_rank import LowRank


class WithLora:
    """A network that LoRAs can be loaded beside, without touching what it holds; `pipe.load_lora_weights` calls this.

    Every change lowers a quantized network again, which takes as long as loading it does.
    """

    _adapters: Adapters = Adapters()

    def _take_adapters(self, adapters: Adapters) -> None:
        """Run with these from now on, or raise and stay as it is."""
        raise NotImplementedError

    @property
    def branches(self) -> dict[str, LowRank]:
        """What the LoRAs that are on add, by the paths of the layers."""
        return self._adapters.branches()

    def load_lora_adapter(
        self,
        pretrained_model_name_or_path_or_dict: Mapping[str, Tensor] | str | os.PathLike[str],
        prefix: str | None = "unet",
        hotswap: bool = False,
        *,
        adapter_name: str | None = None,
        network_alphas: Mapping[str, float] | None = None,
        metadata: Mapping[str, Any] | None = None,
        **ignored: Any,
    ) -> None:
        """Add a LoRA, which is then the one that is on, at a weight of 1.

        Args:
            pretrained_model_name_or_path_or_dict: its tensors by name, or a safetensors file.
            prefix: of the names that belong to this network; None: all do.
            hotswap: put it in the place of the one of that name.
            adapter_name: what it is called; None: default_0, default_1, ...
            network_alphas, metadata: what diffusers finds beside the tensors, see `lora.read_adapter`.
            ignored: what diffusers' networks take besides, which says nothing here: `_pipeline`, `low_cpu_mem_usage`.
        Raises:
            ConfigError: it is no plain LoRA of this network, or the name is taken. The network stays as it was.
        """
        adapter = read_adapter(_tensors(pretrained_model_name_or_path_or_dict), prefix, network_alphas, metadata)
        if not adapter.layers:
            raise ConfigError(
                "it holds nothing for this network",
                where="LoRA",
                fix=f"Its names have to begin with {prefix!r}; prefix=None takes them all" if prefix else "",
            )
        self._take_adapters(self._adapters.added(adapter, adapter_name, instead=hotswap))

    def set_adapters(
        self, adapter_names: str | Sequence[str], weights: float | Sequence[float | None] | None = None
    ) -> None:
        """Turn these on, with these weights, and all others off. Raises ConfigError where there is no such LoRA."""
        self._take_adapters(self._adapters.chosen(adapter_names, weights))

    def active_adapters(self) -> list[str]:
        """The names of those that are on."""
        return list(self._adapters.weights) if self._adapters.enabled else []

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Forget these. Raises ConfigError where there is no such LoRA."""
        self._take_adapters(self._adapters.without(adapter_names))

    def enable_lora(self) -> None:
        """Turn on again what `disable_lora` turned off."""
        self._take_adapters(self._adapters.switched(True))

    def disable_lora(self) -> None:
        """Compute as if there were none, until `enable_lora`."""
        self._take_adapters(self._adapters.switched(False))

    def unload_lora(self) -> None:
        """Forget all of them."""
        self._take_adapters(Adapters())


def _tensors(given: Mapping[str, Tensor] | str | os.PathLike[str]) -> Mapping[str, Tensor]:
    if isinstance(given, Mapping):
        return given
    try:
        return load_file(Path(given))
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"it cannot be read ({error})",
            where=str(given),
            fix="Give a safetensors file of its own, or pipe.load_lora_weights, which finds one",
        ) from error
