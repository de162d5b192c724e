"""Autoencoders of diffusers with quantized networks inside: tiles, slices, `config` and `dtype` stay diffusers' own.

Imported when one is made or loaded, as it imports diffusers.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import nn

from qdiff_fx.backends import get_backend
from qdiff_fx.backends.common.options import choose_options
from qdiff_fx.errors import ArtifactError
from qdiff_fx.networks.quantized import QuantizedUNet
from qdiff_fx.networks.settled import check_settled
from qdiff_fx.storage.autoencoder import FILES, INSIDE, SavedAutoencoder, read_autoencoder, save_autoencoder
from qdiff_fx.storage.hub import located

if TYPE_CHECKING:
    Base = nn.Module
else:
    Base = object


class WithQuantizedNetworks(Base):
    """What an autoencoder becomes whose decoder or encoder is a `QuantizedUNet`."""

    config: Mapping[str, Any]

    @property
    def dtype(self) -> torch.dtype:
        """That it is called in and answers in."""
        return next(iter(networks_inside(self).values())).dtype

    @property
    def device(self) -> torch.device:
        return next(iter(networks_inside(self).values())).device

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write it as the component of a pipeline, which `pipe.save_pretrained` calls: see `storage/autoencoder.py`.

        Raises:
            ArtifactError: the folder holds something else, or the disk is full; nothing half-written stays.
        """
        base, networks = _base(type(self)), networks_inside(self)
        arguments = {name: self.config[name] for name in _arguments(base) if name in self.config}
        weights = {
            f"{child}.{name}": tensor
            for child, module in self.named_children()
            if child not in networks
            for name, tensor in module.state_dict().items()
        }
        artifacts = {inside: network.to_artifact() for inside, network in networks.items()}
        save_autoencoder(base.__name__, arguments, artifacts, weights, save_directory)

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
        """Load what `save_pretrained` wrote, as `DiffusionPipeline.from_pretrained` does; nothing in it is executed.

        Args:
            name: a folder, or a repository "owner/name" of the hub.
            torch_dtype, dtype: what it is called in, by the name that diffusers' version has for it.
            quantization_config: only None: it is quantized already.
            backend: what its networks run on.
            subfolder, revision, cache_dir, token, local_files_only: see `storage.hub.located`.
            device_map: only the processor.
            of_diffusers: how it reads weights of its own kind, which says nothing about these.
        Raises:
            ArtifactError: it is missing, damaged, or something else.
            ConfigError: it would be quantized twice, or is to be somewhere else.
        """
        check_settled(name, quantization_config, device_map)
        hub: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "token": token}
        folder = located(name, FILES, subfolder=subfolder, local_files_only=local_files_only, **hub)
        saved = read_autoencoder(folder, {each.__name__: _arguments(each) for each in map(_base, KINDS)})
        if saved.kind != _base(cls).__name__:
            raise ArtifactError(
                f"it holds a quantized {saved.kind}, not a {_base(cls).__name__}",
                where=str(folder),
                fix="Save the pipeline again",
            )
        found: Self = _built(cls, saved, folder, backend)
        if (given := dtype or torch_dtype) is not None:
            for child in found.children():
                child.to(given)
        return found


class QuantizedAutoencoderKL(WithQuantizedNetworks, AutoencoderKL):
    """An `AutoencoderKL` with quantized networks inside."""


class QuantizedAutoencoderTiny(WithQuantizedNetworks, AutoencoderTiny):
    """An `AutoencoderTiny` with quantized networks inside."""


KINDS: tuple[type[Any], ...] = (QuantizedAutoencoderKL, QuantizedAutoencoderTiny)


def with_networks(autoencoder: nn.Module, networks: Mapping[str, QuantizedUNet]) -> nn.Module:
    """The same autoencoder with these in the place of its own; the one that is given stays as it is.

    Args:
        networks: by "decoder" and "encoder".
    """
    kind = kind_of(autoencoder)
    assert kind is not None, "whoever asks has looked"
    twin: nn.Module = object.__new__(kind)
    of_modules = nn.Module().__dict__
    for name, value in autoencoder.__dict__.items():
        # What modules keep track of themselves in is not shared.
        twin.__dict__[name] = value.copy() if name in of_modules and isinstance(value, dict) else value
    twin._modules |= networks
    return twin


def kind_of(autoencoder: object) -> type[Any] | None:
    """The class that it becomes; None where its decoder cannot be quantized by itself."""
    if isinstance(autoencoder, KINDS):
        return type(autoencoder)
    # Exactly: what is derived from one may call its decoder otherwise.
    return next((kind for kind in KINDS if _base(kind) is type(autoencoder)), None)


def networks_inside(autoencoder: Any) -> dict[str, QuantizedUNet]:
    """Those that are quantized."""
    found = {inside: autoencoder._modules.get(inside) for inside in INSIDE}
    return {inside: network for inside, network in found.items() if isinstance(network, QuantizedUNet)}


def _base(kind: type[Any]) -> type[Any]:
    """The class of diffusers."""
    base: type[Any] = kind.__bases__[1]
    return base


def _arguments(base: type[Any]) -> tuple[str, ...]:
    return tuple(name for name in inspect.signature(base.__init__).parameters if name != "self")


def _built(kind: type[Any], saved: SavedAutoencoder, folder: Path, backend: str) -> Any:
    """The autoencoder around its networks; on the meta device until weights come: initial ones would be for nothing."""
    try:
        with torch.device("meta"):
            found = kind(**saved.config)
    except Exception as error:
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ArtifactError(
            f"there is no {saved.kind} of this configuration ({cause})",
            where=str(folder),
            fix="Save the pipeline again",
        ) from error
    options = choose_options(get_backend(backend), {})
    for inside, place in saved.networks.items():
        found._modules[inside] = QuantizedUNet.load(place, backend, options)
    floats = {name: child for name, child in found.named_children() if name not in saved.networks}
    expected = {f"{name}.{key}" for name, child in floats.items() for key in child.state_dict()}
    if different := sorted(expected ^ set(saved.weights)):
        raise ArtifactError(
            f"{different[0]!r} is {'missing' if different[0] in expected else 'no weight of it'}",
            where=f"{folder}, {saved.kind}",
            fix="Save the pipeline again",
        )
    for name, child in floats.items():
        own = {key: saved.weights[f"{name}.{key}"] for key in child.state_dict()}
        _fill(child, own, f"{folder}, {name}")
    found.eval()
    return found


def _fill(module: nn.Module, weights: Mapping[str, torch.Tensor], where: str) -> None:
    for key, own in module.state_dict().items():
        if own.shape != weights[key].shape or not weights[key].is_floating_point():
            raise ArtifactError(
                f"{key} is {weights[key].dtype} {list(weights[key].shape)}, not {list(own.shape)} of floats",
                where=where,
                fix="Save the pipeline again",
            )
    module.load_state_dict(weights, assign=True)
    module.requires_grad_(False)
