"""ControlNets of diffusers around quantized networks: what a pipeline scales their results by stays outside of these.

Imported when one is made or loaded, as it imports diffusers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from itertools import count
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from qdiff_fx.errors import ArtifactError, InputError
from qdiff_fx.networks.quantized import QuantizedUNet
from qdiff_fx.networks.settled import check_settled
from qdiff_fx.signature.call import RETURN_DICT
from qdiff_fx.signature.dropin import Config
from qdiff_fx.signature.missing import missing
from qdiff_fx.storage.component import NETWORK

if TYPE_CHECKING:
    # As diffusers has no types, what is used of them.
    ControlNetOutput: Any

    class ControlNetModel(nn.Module): ...

    class MultiControlNetModel(nn.Module):
        nets: Any

        def __init__(self, controlnets: list[nn.Module]): ...
else:
    from diffusers import ControlNetModel, MultiControlNetModel
    from diffusers.models.controlnets.controlnet import ControlNetOutput

COMPONENT = "controlnet"
SCALE, GUESS = "conditioning_scale", "guess_mode"
OUTSIDE = (SCALE, GUESS)
"""Arguments that say only what results are multiplied by: they change from call to call, where a graph has one."""
FIRST_OF_GUESSES = 0.1
"""What the first result is multiplied by where a pipeline guesses; the last one is by 1, those between by powers."""
RESULTS = ("down_block_res_samples", "mid_block_res_sample")


class QuantizedControlNetModel(ControlNetModel):
    """A `ControlNetModel` whose results come from a quantized network.

    Args:
        network: called like the ControlNet that it was captured from, its results not scaled.
    """

    network: QuantizedUNet

    def __init__(self, network: QuantizedUNet):
        nn.Module.__init__(self)  # without layers in float
        self.network = network
        self.eval()

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Same arguments and result as of a `ControlNetModel`.

        Raises:
            InputError: as of `QuantizedUNet`; or results cannot be multiplied by what is given for that.
        """
        given = self.network.signature.bind_arguments(args, kwargs)
        scale, guess = (given.pop(name) for name in OUTSIDE)
        in_words = given.pop(RETURN_DICT)
        down, middle = self.network(**given, return_dict=False)
        *scales, last = self._scales(scale, bool(guess), len(down) + 1)
        down = [_scaled(result, own) for result, own in zip(down, scales, strict=True)]
        middle = _scaled(middle, last)
        return ControlNetOutput(down, middle) if in_words or in_words is None else (down, middle)

    def _scales(self, scale: Any, guess: bool, results: int) -> list[Any]:
        """What each result is multiplied by."""
        if isinstance(scale, bool) or not isinstance(scale, (Real, Tensor)) or torch.as_tensor(scale).numel() != 1:
            raise InputError(
                f"{scale!r} is not one number", where=f"argument {SCALE!r}", fix="Give each ControlNet its own"
            )
        if not guess or self.config.get("global_pool_conditions"):
            return [scale] * results
        return [each * scale for each in torch.logspace(math.log10(FIRST_OF_GUESSES), 0, results)]

    @property
    def config(self) -> Config:
        return self.network.config

    def register_to_config(self, **noted: Any) -> None:
        """What diffusers notes about a model once it is loaded; the network's configuration stays what it was."""

    def set_attn_processor(self, processor: Any) -> None:
        """Raises AttributeError, as a `QuantizedUNet` does."""
        raise missing("set_attn_processor", type(self).__name__)

    @property
    def dtype(self) -> torch.dtype:
        """That it is called in and answers in."""
        return self.network.dtype

    @property
    def device(self) -> torch.device:
        return self.network.device

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write it as the component of a pipeline, as a `QuantizedUNet` is: see `storage/component.py`.

        Raises:
            ArtifactError: the folder holds something else, or the disk is full; nothing half-written stays.
        """
        self.network.save_pretrained(save_directory)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        subfolder: str = "",
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        quantization_config: object = None,
        backend: str = "native",
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        device_map: Any = None,
        **of_diffusers: Any,
    ) -> Self:
        """Load what `save_pretrained` wrote, as `DiffusionPipeline.from_pretrained` does.

        Args:
            name, subfolder, torch_dtype, dtype, backend, revision, cache_dir, token, local_files_only: as of
                `QuantizedUNet.from_pretrained`.
            quantization_config: only None: it is quantized already.
            device_map: only the processor.
            of_diffusers: how it reads weights of its own kind, which says nothing about these.
        Raises:
            ArtifactError: it is missing, damaged, or of something else.
            ConfigError: it would be quantized twice, or is to be somewhere else.
        """
        check_settled(name, quantization_config, device_map)
        network = QuantizedUNet.from_pretrained(
            name,
            subfolder=subfolder,
            torch_dtype=dtype or torch_dtype,
            backend=backend,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )
        _check_is_controlnet(network, Path(name, subfolder))
        return cls(network)


class QuantizedMultiControlNetModel(MultiControlNetModel):
    """Several ControlNets whose results are added up; those that cannot be quantized stay as they are."""

    @property
    def dtype(self) -> torch.dtype:
        """That all are called in."""
        found: torch.dtype = self.nets[0].dtype
        return found

    @property
    def device(self) -> torch.device:
        found: torch.device = self.nets[0].device
        return found

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write each into a folder of its own, as a `MultiControlNetModel` does: controlnet/, controlnet_1/.

        Raises:
            ArtifactError: as of `QuantizedControlNetModel`.
        """
        for folder, net in zip(_folders(save_directory), self.nets):
            net.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **given: Any) -> Self:
        """Load what `save_pretrained` wrote.

        Args:
            name: the first folder, of this machine.
            given: as `QuantizedControlNetModel.from_pretrained` and, of those in float, diffusers take it.
        Raises:
            ArtifactError: as of `QuantizedControlNetModel`.
        """
        nets = []
        for folder in _folders(name):
            if not folder.is_dir():
                break
            kind: Any = QuantizedControlNetModel if (folder / NETWORK).is_dir() else ControlNetModel
            nets.append(kind.from_pretrained(folder, **given))
        if not nets:
            raise ArtifactError("there is no such folder", where=str(name), fix="Save the pipeline again")
        return cls(nets)


def controlnets_of(given: nn.Module) -> dict[str, nn.Module]:
    """Each ControlNet of what a pipeline has, by the name that its folder is going to have: "controlnet_1"."""
    nets = list(given.nets) if isinstance(given, MultiControlNetModel) else [given]
    return dict(zip(_names(COMPONENT), nets))


def quantized_inside(given: nn.Module) -> dict[str, QuantizedUNet]:
    """The networks of those that are quantized."""
    found = controlnets_of(given)
    return {name: each.network for name, each in found.items() if isinstance(each, QuantizedControlNetModel)}


def with_quantized(given: nn.Module, networks: Mapping[str, QuantizedUNet]) -> nn.Module:
    """The same with these in the place of its own; what is given stays as it is.

    Args:
        networks: by names of `controlnets_of`.
    """
    nets = controlnets_of(given) | {name: QuantizedControlNetModel(network) for name, network in networks.items()}
    if not isinstance(given, MultiControlNetModel):
        return nets[COMPONENT]
    return QuantizedMultiControlNetModel(list(nets.values()))


def can_be_quantized(given: nn.Module) -> bool:
    """Exactly of this class: what is derived from it may scale its results otherwise."""
    return type(given) is ControlNetModel


def _names(first: str) -> Iterator[str]:
    """The first, first_1, first_2: what diffusers calls the folders of several."""
    return (f"{first}_{number}" if number else first for number in count())


def _folders(first: str | os.PathLike[str]) -> Iterator[Path]:
    return map(Path, _names(os.fspath(first)))


def _scaled(result: Tensor, scale: Any) -> Tensor:
    return result if not isinstance(scale, Tensor) and scale == 1 else result * scale


def _check_is_controlnet(network: QuantizedUNet, where: Path) -> None:
    """A folder may be from anybody."""
    output, names = network.signature.output, {each.name for each in network.signature.parameters}
    items = output.get("items")
    results = items if isinstance(items, Mapping) else {}
    kinds = [each.get("kind") for each in results.values()]
    if tuple(results) != RESULTS or kinds[1:] != ["tensor"] or not {*OUTSIDE, RETURN_DICT} <= names:
        raise ArtifactError("it holds a network that is no ControlNet", where=str(where), fix="Save the pipeline again")
