"""The parts of a pipeline that are quantized, each by itself: what they are called, where they are, how they change."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from qdiff_fx.errors import ConfigError
from qdiff_fx.networks import PreparedUNet, QuantizedUNet
from qdiff_fx.sampling.denoiser import NAMES

UNET, CONTROLNET, VAE, ENCODER, TEXT = "unet", "controlnet", "vae", "encoder", "text"
WORDS = (UNET, CONTROLNET, VAE, ENCODER, TEXT)
"""The network that denoises, whatever the pipeline calls it; the ControlNets beside it; the decoder of its autoencoder;
the encoder of that, for pipelines that take images; and its text encoders."""
USUAL = (UNET, CONTROLNET, VAE, TEXT)
"""Those that every image takes."""
AUTOENCODER = "vae"
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")
INSIDE_OF = {VAE: "decoder", ENCODER: "encoder"}
ALIKE = ("block_out_channels", "layers_per_block", "cross_attention_dim")
"""Of a ControlNet's configuration: as in the UNet's, whose first half it is a copy of."""


class NothingToQuantizeError(ConfigError):
    """The pipeline has no such part, or one that is quantized already."""


class CannotRunError(ConfigError):
    """The pipeline cannot run as it is, whatever of it is quantized."""


@dataclass(frozen=True)
class Part:
    """A network of a pipeline beside the one that denoises.

    Attributes:
        word: what people call it, one of `WORDS`.
        component: what the pipeline calls what it is in, "vae" or "text_encoder_2"; the second of several ControlNets
            is "controlnet_1", as its folder is called.
        network: in float, in eval mode.
    """

    word: str
    component: str
    network: nn.Module

    @property
    def inside(self) -> str:
        """What it is called inside its component; empty where it is the whole of it."""
        return INSIDE_OF.get(self.word, "")

    @property
    def name(self) -> str:
        """ "vae.decoder", "text_encoder"."""
        return ".".join(filter(None, (self.component, self.inside)))


def parts_of(pipe: Any, word: str) -> list[Part]:
    """The parts of a pipeline that a word stands for.

    Raises:
        NothingToQuantizeError: there is none, or one that is quantized already.
        CannotRunError: nor can the float pipeline run with it.
        ConfigError: it cannot be quantized by itself.
    """
    if word == CONTROLNET:
        return _controlnets(pipe)
    if word == TEXT:
        found = {name: getattr(pipe, name, None) for name in TEXT_ENCODERS}
        encoders = {name: each for name, each in found.items() if isinstance(each, nn.Module)}
        if not encoders:
            raise _none(pipe, "text encoder", word)
        for name, each in encoders.items():
            _check_float(each, name)
        return [Part(word, name, each.eval()) for name, each in encoders.items()]
    autoencoder, inside = getattr(pipe, AUTOENCODER, None), INSIDE_OF[word]
    if not isinstance(autoencoder, nn.Module):
        raise _none(pipe, f"autoencoder with a{'n' if word == ENCODER else ''} {inside}", word)
    from qdiff_fx.networks.autoencoder import KINDS, kind_of

    if kind_of(autoencoder) is None:
        known = ", ".join(each.__bases__[-1].__name__ for each in KINDS)
        raise ConfigError(
            f"its autoencoder is a {type(autoencoder).__name__}, none of {known}",
            where=f"parts, {word!r}",
            fix="Leave it out: it stays in float",
        )
    network: nn.Module = getattr(autoencoder, inside)
    _check_float(network, f"{AUTOENCODER}.{inside}")
    return [Part(word, AUTOENCODER, network.eval())]


def _controlnets(pipe: Any) -> list[Part]:
    given = getattr(pipe, CONTROLNET, None)
    if not isinstance(given, nn.Module):
        raise _none(pipe, "ControlNet", CONTROLNET)
    from qdiff_fx.networks.controlnet import can_be_quantized, controlnets_of, quantized_inside

    for name, network in quantized_inside(given).items():
        _check_float(network, name)
    found = controlnets_of(given)
    for name, each in found.items():
        if not can_be_quantized(each):
            raise ConfigError(
                f"its {name} is a {type(each).__name__}, no ControlNetModel",
                where=f"parts, {CONTROLNET!r}",
                fix="Leave it out: it stays in float",
            )
        _check_fits(pipe, name, each)
    return [Part(CONTROLNET, name, each.eval()) for name, each in found.items()]


def _check_fits(pipe: Any, name: str, controlnet: Any) -> None:
    """Said here, as diffusers fails in the middle of the UNet."""
    unet: Any = getattr(pipe, UNET, None)
    if unet is None:
        return
    expected, found = {"type": unet.dtype, **unet.config}, {"type": controlnet.dtype, **controlnet.config}
    for what in ("type", *ALIKE):
        if _plain(expected.get(what)) != _plain(found.get(what)):
            raise CannotRunError(
                f"its {name} has {what} {found.get(what)}, its {UNET} {expected.get(what)}",
                where=f"parts, {CONTROLNET!r}",
                fix="Give the pipeline a ControlNet that was trained beside this UNet, read in the same type",
            )


def _plain(value: Any) -> Any:
    """JSON has no tuples."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def put_parts(pipe: Any, networks: Mapping[Part, QuantizedUNet]) -> None:
    """Into the pipeline, in the place of its own. Around a decoder there is another object, with the same modules."""
    for part, network in networks.items():
        put_quantized(pipe, part.name, network)


def put_quantized(pipe: Any, name: str, network: QuantizedUNet) -> None:
    """One network: "text_encoder", "vae.decoder", "controlnet_1"."""
    component, _, inside = name.partition(".")
    if component.startswith(CONTROLNET):
        from qdiff_fx.networks.controlnet import with_quantized

        setattr(pipe, CONTROLNET, with_quantized(getattr(pipe, CONTROLNET), {component: network}))
        return
    if not inside:
        setattr(pipe, component, network)
        return
    from qdiff_fx.networks.autoencoder import with_networks

    setattr(pipe, component, with_networks(getattr(pipe, component), {inside: network}))


def all_quantized(pipe: Any) -> dict[str, QuantizedUNet]:
    """Every quantized network of a pipeline, by its name in it; the one that denoises first."""
    components = getattr(pipe, "components", {})
    found = {name: each for name, each in components.items() if isinstance(each, QuantizedUNet)}
    autoencoder = components.get(AUTOENCODER)
    inside = {part: getattr(autoencoder, part, None) for part in INSIDE_OF.values()}
    found |= {f"{AUTOENCODER}.{part}": each for part, each in inside.items() if isinstance(each, QuantizedUNet)}
    if isinstance(controlnet := components.get(CONTROLNET), nn.Module):
        from qdiff_fx.networks.controlnet import quantized_inside

        found |= quantized_inside(controlnet)
    return dict(sorted(found.items(), key=lambda item: item[0] not in NAMES))


def check_words(words: Collection[str]) -> tuple[str, ...]:
    """The parts that are asked for, each once, by the words this package has for them.

    Args:
        words: what the pipeline itself calls the network that denoises is one too.
    Raises:
        ConfigError: none are asked for, or one that there is no word for.
    """
    found = tuple(dict.fromkeys(UNET if each in NAMES else each for each in words))
    unknown = [each for each in found if each not in WORDS]
    if unknown or not found:
        what = f"{unknown[0]!r} is none of {', '.join(WORDS)}" if unknown else "none are named"
        raise ConfigError(what, where="parts", fix=f"Name some of {', '.join(WORDS)}")
    return found


def _none(pipe: Any, what: str, word: str) -> ConfigError:
    return NothingToQuantizeError(
        f"{type(pipe).__name__} has no {what} that could be quantized", where=f"parts, {word!r}", fix="Leave it out"
    )


def _check_float(network: nn.Module, name: str) -> None:
    if isinstance(network, (QuantizedUNet, PreparedUNet)):
        raise NothingToQuantizeError(
            f"its {name} is a {type(network).__name__} already",
            where="parts",
            fix="Leave it out, or give the float one",
        )
