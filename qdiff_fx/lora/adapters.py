"""The LoRAs that a network has been given, and which of them are on, how much."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from safetensors.torch import load, save
from torch import Tensor

from qdiff_fx.errors import ConfigError
from qdiff_fx.lora.adapter import Adapter
from qdiff_fx.passes.low_rank import LowRank

DESCRIPTION, TENSORS = "lora.json", "lora.safetensors"


@dataclass(frozen=True)
class Adapters:
    """LoRAs by name. Changing them gives others.

    Attributes:
        known: all of them.
        weights: of those that are chosen.
        enabled: whether these are on.
    """

    known: Mapping[str, Adapter] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    enabled: bool = True

    def branches(self) -> dict[str, LowRank]:
        """What they add to each layer, all together."""
        found: dict[str, list[LowRank]] = {}
        for name, weight in self.weights.items() if self.enabled else ():
            for path, each in self.known[name].layers.items():
                found.setdefault(path, []).append(LowRank(each.down, each.up * weight))
        return {path: _side_by_side(each) for path, each in found.items()}

    def added(self, adapter: Adapter, name: str | None, *, instead: bool) -> Adapters:
        """With one more, which is then the one that is chosen.

        Args:
            name: None: default_0, default_1, ...
            instead: of the one of that name.
        Raises:
            ConfigError: the name is taken, or is not there to be replaced.
        """
        if name is None:
            name = next(
                name for number in range(len(self.known) + 1) if (name := f"default_{number}") not in self.known
            )
        if (name in self.known) != instead:
            raise ConfigError(
                f"there is {'no' if instead else 'already a'} LoRA {name!r}",
                where="adapter_name",
                fix=f"There are {sorted(self.known)}",
            )
        weights = self.weights if instead and name in self.weights else {name: 1.0}
        return replace(self, known={**self.known, name: adapter}, weights=weights, enabled=True)

    def chosen(self, names: str | Sequence[str], weights: float | Sequence[float | None] | None) -> Adapters:
        """With these on, and no others.

        Raises:
            ConfigError: there is no such LoRA, or not one number for each.
        """
        listed = [names] if isinstance(names, str) else list(names)
        given = list(weights) if isinstance(weights, Sequence) else [weights] * len(listed)
        self._check(listed)
        if len(given) != len(listed) or not all(each is None or isinstance(each, (int, float)) for each in given):
            raise ConfigError(
                f"{weights!r} are no weights of {listed}",
                where="adapter_weights",
                fix="Give one number, or one for each; weights of single blocks have to be fused",
            )
        numbers = [1.0 if each is None else float(each) for each in given]
        return replace(self, weights=dict(zip(listed, numbers, strict=True)), enabled=True)

    def without(self, names: str | Sequence[str]) -> Adapters:
        """Without these. Raises ConfigError where there is no such LoRA."""
        listed = [names] if isinstance(names, str) else list(names)
        self._check(listed)
        known = {name: each for name, each in self.known.items() if name not in listed}
        return replace(self, known=known, weights={name: each for name, each in self.weights.items() if name in known})

    def switched(self, enabled: bool) -> Adapters:
        """With those that are chosen on, or off."""
        return replace(self, enabled=enabled)

    def to_files(self) -> dict[str, bytes]:
        """All of it as JSON and tensors, for networks that are pickled; nothing where there are none."""
        if not self.known:
            return {}
        tensors: dict[str, Tensor] = {}
        for at, adapter in enumerate(self.known.values()):
            for number, each in enumerate(adapter.layers.values()):
                tensors |= {f"{at}.{number}.down": each.down, f"{at}.{number}.up": each.up.contiguous()}
        known = [[name, list(adapter.layers)] for name, adapter in self.known.items()]
        description = {"known": known, "weights": dict(self.weights), "enabled": self.enabled}
        return {DESCRIPTION: json.dumps(description).encode(), TENSORS: save(tensors)}

    @staticmethod
    def of_files(files: Mapping[str, bytes]) -> Adapters:
        """What `to_files` gave."""
        if not files:
            return Adapters()
        description, tensors = json.loads(files[DESCRIPTION]), load(files[TENSORS])
        known = {}
        for at, (name, paths) in enumerate(description["known"]):
            pairs = (LowRank(tensors[f"{at}.{i}.down"], tensors[f"{at}.{i}.up"]) for i in range(len(paths)))
            known[name] = Adapter(dict(zip(paths, pairs, strict=True)))
        return Adapters(known, description["weights"], description["enabled"])

    def _check(self, names: Sequence[str]) -> None:
        unknown = sorted(set(names) - set(self.known))
        if unknown:
            raise ConfigError(
                f"there is no LoRA {unknown[0]!r}", where="adapter_names", fix=f"There are {sorted(self.known)}"
            )


def _side_by_side(branches: Sequence[LowRank]) -> LowRank:
    if len(branches) == 1:
        return branches[0]
    return LowRank(torch.cat([each.down for each in branches]), torch.cat([each.up for each in branches], dim=1))
