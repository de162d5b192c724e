"""The two networks a user holds: prepared (it watches) and quantized (it runs on integers)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Self, cast

import torch
from torch import fx, nn

from qdiff_fx.backends import BackendOptions, Lowered, get_backend
from qdiff_fx.backends.common.explanation import Explanation
from qdiff_fx.backends.common.options import checked_options, choose_options
from qdiff_fx.config import QDiffConfig
from qdiff_fx.errors import CalibrationError, ComputeError, ConfigError, InputError, QDiffError
from qdiff_fx.observers import Observer
from qdiff_fx.passes.framework import PassReport
from qdiff_fx.passes.quantize.convert import reannotate
from qdiff_fx.passes.quantize.measure import fitting
from qdiff_fx.passes.quantize.merge_observers import copy_with_observers, merge_observers
from qdiff_fx.quant.digest import digest_tensor
from qdiff_fx.quant.parameters import NOTHING, ParameterStore
from qdiff_fx.signature import CallSignature, DropIn
from qdiff_fx.signature.memory import HeldMemory, handed_out
from qdiff_fx.signature.rows import join_rows, take_rows
from qdiff_fx.signature.state import differences
from qdiff_fx.storage.artifact import Artifact, load_artifact, save_artifact
from qdiff_fx.storage.parameters_json import parameters_to_json
from qdiff_fx.storage.pickled import from_files, to_files
from qdiff_fx.storage.prepared import PreparedArtifact, load_prepared_artifact, save_prepared_artifact

GRAPH_DIGEST, DECIDED_DIGEST = "graph_digest", "decided_digest"
"""In a state_dict, what its tensors belong to: numbers in the graph, a schedule, codes are no tensors of a module."""


class _PickledAsSaved(DropIn):
    """Pickled in the form it is saved in; copied as any module is. Hooks of one's own stay behind in a pickle."""

    def __copy__(self) -> Self:
        return self._with_state(self.__dict__)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        memo[id(self)] = twin = self._with_state({})
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def _with_state(self, state: Mapping[str, Any]) -> Self:
        twin = type(self).__new__(type(self))
        twin.__dict__.update(state)
        return twin


class _WithState(_PickledAsSaved):
    """A network whose state is taken whole, or not at all.

    Its ``state_dict`` has digests beside the tensors. ``load_state_dict`` takes what observers saw, where the network
    has them; all else has to be what the network holds already.
    """

    _way_out: str

    def _digests(self) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def _may_change(self, key: str) -> bool:
        return False

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination |= {prefix + name: value for name, value in self._digests().items()}

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], strict: bool, *_: Any
    ) -> None:
        """Called before anything is loaded, by ``load_state_dict`` of the network or of a module it is a part of."""
        given = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        if not given and not strict:
            return
        different = differences(self.state_dict(), given, self._may_change)
        if local_metadata.get("assign_to_params_buffers"):
            different = different or "assign=True would replace the tensors that run"
        if different:
            raise InputError(
                f"the state of another network cannot be loaded into this one: {different}",
                where=f"{type(self).__name__}.load_state_dict",
                fix=self._way_out,
            )


class PreparedUNet(_WithState):
    """The float network with observers in it: calling it computes the same and records activation statistics.

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

    @property
    def qconfig(self) -> QDiffConfig:
        """As it was prepared, with the range of timesteps that calibration found where it is called with such."""
        observers = (each for each in self.modules() if isinstance(each, Observer))
        first = next(observers, None)
        if first is None or first.schedule.span == self._qconfig.timestep_range:
            return self._qconfig
        return replace(self._qconfig, timestep_range=first.schedule.span)

    _way_out = "Prepare it from the weights and with the configuration of that state, or use load_prepared"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Same arguments and result as the original network's forward."""
        with _in_words("the prepared network"):
            return super().forward(*args, **kwargs)

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
        return _read_prepared, (to_files(partial(save_prepared_artifact, self.to_artifact())),)

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


@contextmanager
def _in_words(where: str) -> Iterator[None]:
    """Whatever torch raises in the middle of a call: an index outside a table, memory that is not there."""
    try:
        yield
    except QDiffError:
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ComputeError(f"the network failed ({cause})", where=where) from error


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


def _read_prepared(files: Mapping[str, bytes]) -> PreparedUNet:
    return PreparedUNet.of_artifact(from_files(files, load_prepared_artifact))


class QuantizedUNet(_WithState):
    """The quantized network: called like the original, running on one backend.

    It is saved and loaded whole (``save_qdiff``, ``load_qdiff``): ``load_state_dict`` takes its own state only.

    Attributes:
        graph_module: the q/dq graph, which is what gets saved and lowered again for other backends.
        qconfig: the configuration it was made with.
        backend: name of the backend it runs on.
        options: what was chosen about that backend.
        source: where the float network came from, for evaluating against it later; may be empty.
    """

    reload: Callable[[], fx.GraphModule] | None = None
    """Reads the q/dq graph anew where lowering freed its weights."""

    def __init__(
        self,
        graph_module: fx.GraphModule,
        signature: CallSignature,
        qconfig: QDiffConfig,
        backend: str,
        options: BackendOptions | None = None,
        source: str = "",
        *,
        release: bool = False,
    ):
        super().__init__(graph_module, signature)
        self.qconfig, self.backend, self.source = qconfig, backend, source
        chosen = get_backend(backend)
        self.options = checked_options(chosen, options)
        self._lowered: Lowered = chosen.lower(graph_module, self.options, release=release)
        # A list hides the module from nn.Module: its tensors are views of the q/dq graph's, or packed copies.
        self._run = [self._lowered.module]
        self._held = HeldMemory(self._run)
        if release:
            self._modules["graph_module"] = nn.Module()  # in place of tensors whose memory is gone

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Same arguments and result as the original network's forward. Not differentiable.

        Raises:
            InputError: the call does not fit the network, an argument holds NaN, or a timestep is none that it could
                have been calibrated for.
        """
        call = self.signature.bind(args, kwargs)
        self._check_timestep(call.tensors)
        self._check_numbers(call.tensors)
        outputs = handed_out(self._forward_flat(call.tensors), call.tensors, self._held)
        return self.signature.pack(outputs, call.return_dict)

    _way_out = "Save the network with save_qdiff and load it with load_qdiff"

    def _digests(self) -> dict[str, torch.Tensor]:
        return {GRAPH_DIGEST: digest_tensor([str(self.graph_module.graph)])}

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self.graph_module  # noqa: B018  # read again, where its tensors are not in memory
        return super().state_dict(*args, **kwargs)

    def requires_grad_(self, requires_grad: bool = True) -> QuantizedUNet:
        """Only `requires_grad_(False)`, which changes nothing: it computes in integers."""
        if requires_grad:
            self._refuse("be trained", "computes in integers")
        return self

    @property
    def graph_module(self) -> fx.GraphModule:  # type: ignore[override]  # read again when asked for
        graph = cast(fx.GraphModule, self._modules["graph_module"])
        if self.reload is not None:
            # From here on it is kept: whoever asks once asks again.
            graph, self.reload = self.reload(), None
            self._modules["graph_module"] = graph
        return graph

    def to_artifact(self) -> Artifact:
        """What of it is saved."""
        return Artifact(self.graph_module, self.signature, self.qconfig, self.source)

    def __reduce__(self) -> tuple[Any, ...]:
        """Raises ArtifactError where it cannot be saved."""
        files = to_files(partial(save_artifact, self.to_artifact()))
        return _read_quantized, (files, self.backend, self.options)

    def explain(self, *, verbose: bool = False) -> Explanation:
        """Every weight layer and attention: bits, scales, kernel, or why it is in float.

        Args:
            verbose: with details of how each runs.
        """
        return Explanation(self.backend, self._lowered.layers, verbose, self.signature.fixed_sizes)

    def with_backend(self, backend: str, options: BackendOptions | None = None, **chosen: Any) -> QuantizedUNet:
        """The same quantized network, lowered for another backend.

        Args:
            backend: its name.
            options: an object of that backend's class of options.
            chosen: the options by name, in place of ``options``, e.g. ``reuse=False``.

        Raises:
            ConfigError: the backend has no such option.
            BackendError: the backend is unknown or cannot run on this machine.
        """
        if options is None:
            options = choose_options(get_backend(backend), chosen)
        elif chosen:
            raise ConfigError("options are given twice", where="with_backend", fix="Pass an object or names, not both")
        return QuantizedUNet(self.graph_module, self.signature, self.qconfig, backend, options, self.source)

    def _forward_flat(self, tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        run = self._run[0]
        groups = self._bin_groups(tensors)
        with _in_words(f"backend {self.backend}"):
            if len(groups) <= 1:
                outputs: tuple[torch.Tensor, ...] = run(*tensors)
                return outputs
            parts = [run(*take_rows(self.signature, tensors, rows)) for rows in groups]
            return join_rows(self.signature, parts, groups)

    def _check_timestep(self, tensors: list[torch.Tensor]) -> None:
        position, schedule = self._timestep_position, self.qconfig.schedule
        wrong = None if position is None else schedule.beyond(tensors[position])
        if position is not None and wrong is not None:
            raise InputError(
                f"timestep {wrong} is outside {schedule} that the network was calibrated for",
                where=f"argument '{self.signature.inputs[position].name}'",
                fix="Pass a sampler's timesteps, or calibrate with num_train_timesteps or timestep_range for these",
            )

    def _check_numbers(self, tensors: list[torch.Tensor]) -> None:
        """There is no code for NaN: it would become the lowest one, in a result that looks like any other."""
        for spec, tensor in zip(self.signature.inputs, tensors):
            # A sum needs no memory. That it is NaN may also come from infinities of both signs.
            if tensor.is_floating_point() and bool(tensor.sum().isnan()) and bool(tensor.isnan().any()):
                raise InputError(
                    "it holds NaN, which no integer stands for",
                    where=f"argument '{spec.name}'",
                    fix="Look for what made it: another network's float16, a scheduler's division by zero",
                )

    @property
    def _timestep_position(self) -> int | None:
        return next((i for i, spec in enumerate(self.signature.inputs) if spec.role == "timestep"), None)

    def _bin_groups(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Rows of the batch by timestep bin; one table row of scales holds for a whole call of the graph."""
        position = self._timestep_position
        if position is None or self.qconfig.act_granularity != "timestep" or tensors[position].numel() < 2:
            return []
        return self.qconfig.schedule.split(tensors[position])


def _read_quantized(files: Mapping[str, bytes], backend: str, options: BackendOptions) -> QuantizedUNet:
    found = from_files(files, load_artifact)
    return QuantizedUNet(found.graph_module, found.signature, found.config, backend, options, found.source)
