"""What recorded data depend on beside the plan: weights, scheduler and what was drawn, as digests to compare."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qdiff_fx.quant.digest import digest

WHAT_WAS_DRAWN = "prompts or conditioning"


def source_fingerprint(source: Any, scheduler: Any) -> dict[str, str]:
    """A digest for each thing that decides what a source draws.

    These are the weights of the network, or of each part of a pipeline; the configuration of the network and of the
    scheduler; and what the source itself calls its fingerprint (a Python file's text).
    """
    modules = {"network": source} if isinstance(source, nn.Module) else _parts(source)
    found = {f"weights of {name}": digest(_state_of(module)) for name, module in modules.items()}
    settings = [type(scheduler).__name__, _config_of(scheduler)]
    schedule = getattr(scheduler, "qdiff_schedule", None)
    found["scheduler settings"] = digest(settings if schedule is None else [*settings, schedule.text()])
    found["network settings"] = digest([_config_of(getattr(source, "unet", source))])
    own = getattr(source, "fingerprint", None)
    if callable(own) and not isinstance(source, nn.Module):
        found["source"] = digest([str(own())])
    return found


def inputs_fingerprint(inputs: Mapping[str, Any]) -> str:
    """A digest of what is to be drawn: prompts, labels, conditioning, images."""
    return digest(_pieces(inputs))


def _parts(pipeline: Any) -> dict[str, nn.Module]:
    named = getattr(pipeline, "components", None)
    named = named if isinstance(named, Mapping) else vars(pipeline)
    return {str(name): module for name, module in sorted(named.items()) if isinstance(module, nn.Module)}


def _config_of(owner: Any) -> str:
    """Its configuration, without where and by what version it was saved."""
    config = getattr(owner, "config", None)
    known = dict(config) if isinstance(config, Mapping) else {}
    return json.dumps({key: known[key] for key in known if not key.startswith("_")}, sort_keys=True, default=repr)


def _state_of(module: nn.Module) -> Iterator[str | Tensor]:
    """Names and values of all parameters and buffers, those too that are in no state_dict."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        yield name
        yield tensor


def _pieces(value: Any) -> Iterator[str | Tensor]:
    """Texts and tensors that are the same where a value is; of objects of unknown types only the type is seen."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, np.ndarray):
        yield torch.from_numpy(np.ascontiguousarray(value))
    elif isinstance(value, torch.Generator):
        yield value.get_state()
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield f"{{{key!r}"
            yield from _pieces(value[key])
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        yield f"[{len(value)}"
        for each in value:
            yield from _pieces(each)
    elif value is None or isinstance(value, (bool, int, float, str, bytes)):
        yield repr(value)
    elif hasattr(value, "tobytes") and hasattr(value, "size"):  # an image of PIL
        yield f"{getattr(value, 'mode', '')}{value.size}"
        yield digest([torch.frombuffer(bytearray(value.tobytes()), dtype=torch.uint8)])
    else:
        yield f"{type(value).__module__}.{type(value).__qualname__}"
