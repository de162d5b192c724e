"""The network that watches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import fx

from qdiff_fx.config import QDiffConfig
from qdiff_fx.errors import CalibrationError
from qdiff_fx.lora import Adapters
from qdiff_fx.networks.lora import WithLora
from qdiff_fx.networks.state import DECIDED_DIGEST, GRAPH_DIGEST, WithState, in_words
from qdiff_fx.networks.uncompiled import uncompiled
from qdiff_fx.observers import Observer
from qdiff_fx.passes.framework import PassReport
from qdiff_fx.passes.low_rank import with_branches
from qdiff_fx.passes.quantize.convert import reannotate
from qdiff_fx.passes.quantize.measure import fitting
from qdiff_fx.passes.quantize.merge_observers import copy_with_observers, merge_observers
from qdiff_fx.quant.digest import digest_tensor
from qdiff_fx.quant.parameters import NOTHING, ParameterStore
from qdiff_fx.signature import CallSignature
from qdiff_fx.signature.dropin import answer
from qdiff_fx.storage.parameters_json import parameters_to_json
from qdiff_fx.storage.pickled import from_files, to_files
from qdiff_fx.storage.prepared import PreparedArtifact, load_prepared_artifact, save_prepared_artifact


class PreparedUNet(WithLora, WithState):
    """The float network with observers in it: calling it computes the same and records activation statistics.

    A LoRA beside it is for its observers: what they see of calls with it joins what they saw without. Rounding and
    conversion are of the network alone, and nothing of the LoRA is saved.

    Its ``state_dict`` can be loaded into what was prepared from the same weights in the same way, and so brings back
    what the observers saw. What rounding or reconstruction decided is in ``save_prepared`` only.

    Attributes:
        qconfig: the quantization configuration it was prepared with.
        reports: what each pass changed, and what it refused and why.
        decided: the parameters that rounding or reconstruction decided; conversion measures all others.
    """

    graph_module: fx.GraphModule

    def __init__(
        self,
        graph_module: fx.GraphModule,
        signature: CallSignature,
        qconfig: QDiffConfig,
        reports: list[PassReport],
        decided: ParameterStore = NOTHING,
    ):
        super().__init__(graph_module, signature)
        self._qconfig, self.reports, self.decided = qconfig, reports, decided
        # A list hides the module from nn.Module: its tensors and observers are those of the graph.
        self._beside_loras: list[fx.GraphModule] = []

    def _take_adapters(self, adapters: Adapters) -> None:
        branches = adapters.branches()
        self._beside_loras = [with_branches(self.graph_module, branches)] if branches else []
        self._adapters = adapters

    @property
    def qconfig(self) -> QDiffConfig:
        """As it was prepared, with the range of timesteps that calibration found where it is called with such."""
        observers = (each for each in self.modules() if isinstance(each, Observer))
        first = next(observers, None)
        if first is None or first.schedule.span == self._qconfig.timestep_range:
            return self._qconfig
        return replace(self._qconfig, timestep_range=first.schedule.span)

    _way_out = "Prepare it from the weights and with the configuration of that state, or use load_prepared"

    @uncompiled
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Same arguments and result as the original network's forward."""
        graph = self._beside_loras[0] if self._beside_loras else self.graph_module
        with in_words("the prepared network"):
            return answer(graph, self.signature, self.signature.bind(args, kwargs))

    def _digests(self) -> dict[str, torch.Tensor]:
        graph = str(self.graph_module.graph)
        schedules = [repr(each.schedule) for each in self.modules() if isinstance(each, Observer)]
        digests = {GRAPH_DIGEST: digest_tensor([graph, *schedules])}
        if self.decided:
            description, tensors = parameters_to_json(self.decided)
            digests[DECIDED_DIGEST] = digest_tensor([repr(description), *tensors.values()])
        return digests

    def _may_change(self, key: str) -> bool:
        owner = key.removeprefix("graph_module.").rpartition(".")[0]
        return key.startswith("graph_module.") and isinstance(self.graph_module.get_submodule(owner), Observer)

    def to_artifact(self) -> PreparedArtifact:
        """What of it is saved."""
        return PreparedArtifact(self.graph_module, self.signature, self.qconfig, tuple(self.reports), self.decided)

    @classmethod
    def of_artifact(cls, found: PreparedArtifact) -> PreparedUNet:
        return cls(found.graph_module, found.signature, found.config, list(found.reports), found.decided)

    def __reduce__(self) -> tuple[Any, ...]:
        """Raises ArtifactError where it cannot be saved."""
        return _read_prepared, (
            to_files(partial(save_prepared_artifact, self.to_artifact())),
            self._adapters.to_files(),
        )

    def with_config(self, config: QDiffConfig) -> PreparedUNet:
        """The same network under other bits, ranges or rules, without a second pass over data.

        Both share their observers: whatever calibrates one adds to what the other knows. Codes and step sizes that
        were decided hold where their bits, range and granularity are still asked for.

        Raises:
            ConfigError: layers that would have to be quantized were not observed, or the configuration splits other
                shortcuts or has other timesteps, which takes a graph of its own; or a rule matches no layer.
        """
        if config.timestep_range is None:
            config = replace(config, timestep_range=self.qconfig.timestep_range)
        graph = reannotate(self.graph_module, config, self.qconfig)
        return PreparedUNet(graph, self.signature, config, self.reports, fitting(graph, config, self.decided))

    def merge(self, other: PreparedUNet) -> PreparedUNet:
        """Add what another calibration of the same network saw, exactly as if this one had seen it; returns itself.

        Where calibrations found out the range of their timesteps, and other ones, the parts they counted by have other
        ends, and nobody can tell any more how what one part saw divides among the other's: give the range beforehand.

        Raises:
            CalibrationError: it is another network, prepared with another configuration, calibrated over another range
                of timesteps, or both have decided codes and step sizes, and other ones; the message names the
                difference.
        """
        check_mergeable(self, other)
        merge_observers(self.graph_module, other.graph_module)
        self.decided = self.decided or other.decided
        return self


def merge_prepared(a: PreparedUNet, b: PreparedUNet) -> PreparedUNet:
    """A network that knows what a and b saw; both are left as they are. Raises like ``PreparedUNet.merge``."""
    graph = copy_with_observers(a.graph_module)
    return PreparedUNet(graph, a.signature, a.qconfig, list(a.reports), a.decided).merge(b)


def check_mergeable(a: PreparedUNet, b: PreparedUNet) -> None:
    """Raises CalibrationError where networks are not called or configured alike, or have other codes."""
    ours, theirs = a.qconfig.to_json(), b.qconfig.to_json()
    differing = [
        f"{name} is {ours[name]!r} and {theirs.get(name)!r}" for name in ours if ours[name] != theirs.get(name)
    ]
    if ours.get("timestep_range") != theirs.get("timestep_range"):
        raise CalibrationError(
            f"they were calibrated over {a.qconfig.schedule} and {b.qconfig.schedule}",
            where="merge",
            fix="Set timestep_range in the configuration of both before calibrating",
        )
    if differing:
        raise CalibrationError(
            f"calibrations under different configurations cannot be merged: {', '.join(differing)}",
            where="merge",
            fix="Take one of them to the other's configuration first: prepared.with_config(config)",
        )
    if a.signature.to_json() != b.signature.to_json():
        raise CalibrationError(
            "calibrations of different networks cannot be merged: they are not called alike",
            where="merge",
            fix="Prepare both from the same network with the same example inputs",
        )
    if a.decided and b.decided and a.decided != b.decided:
        raise CalibrationError(
            "both have been rounded or reconstructed, and differently",
            where="merge",
            fix="Merge first, then call round_weights or reconstruct",
        )


def _read_prepared(files: Mapping[str, bytes], loras: Mapping[str, bytes]) -> PreparedUNet:
    network = PreparedUNet.of_artifact(from_files(files, load_prepared_artifact))
    network._take_adapters(Adapters.of_files(loras))
    return network
