"""The network that runs on integers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import fx, nn

from qdiff_fx.backends import BackendOptions, Lowered, get_backend
from qdiff_fx.backends.common.explanation import Explanation
from qdiff_fx.backends.common.memory import release_unused, trim
from qdiff_fx.backends.common.options import checked_options, choose_options
from qdiff_fx.config import QDiffConfig
from qdiff_fx.errors import ConfigError, InputError
from qdiff_fx.lora import Adapters
from qdiff_fx.networks.lora import WithLora
from qdiff_fx.networks.settled import check_settled
from qdiff_fx.networks.state import GRAPH_DIGEST, WithState, in_words
from qdiff_fx.networks.uncompiled import uncompiled
from qdiff_fx.passes.low_rank import with_branches
from qdiff_fx.quant.digest import digest_tensor
from qdiff_fx.schedule import Schedule
from qdiff_fx.signature import CallSignature
from qdiff_fx.signature.dropin import as_captured
from qdiff_fx.signature.hooks import refuse_hooks_inside
from qdiff_fx.signature.memory import HeldMemory, handed_out
from qdiff_fx.signature.rows import join_rows, take_rows
from qdiff_fx.storage.artifact import Artifact, load_artifact, read_again, save_artifact
from qdiff_fx.storage.component import FILES, network_in, save_component
from qdiff_fx.storage.hub import located
from qdiff_fx.storage.pickled import from_files, to_files
from qdiff_fx.storage.sealed import lowering

NO_FILES: Mapping[str, bytes] = MappingProxyType({})


class QuantizedUNet(WithLora, WithState):
    """The quantized network: called like the original, running on one backend.

    It is saved and loaded whole (``save_qdiff``, ``load_qdiff``): ``load_state_dict`` takes its own state only.

    Attributes:
        graph_module: the q/dq graph, which is what gets saved and lowered again for other backends.
        qconfig: the configuration it was made with.
        backend: name of the backend it runs on.
        options: what was chosen about that backend.
        source: where the float network came from, for evaluating against it later; may be empty.
        schedule: the steps it was calibrated along, where these are not a sampler's own; it is saved with it.
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
        schedule: Schedule | None = None,
        *,
        release: bool = False,
        adapters: Adapters = WithLora._adapters,
    ):
        super().__init__(graph_module, signature)
        self.qconfig, self.backend, self.source, self.schedule = qconfig, backend, source, schedule
        chosen = get_backend(backend)
        self.options = checked_options(chosen, options)
        self._adapters = adapters
        self._run_on(chosen.lower(with_branches(graph_module, adapters.branches()), self.options, release=release))
        if release:
            self._modules["graph_module"] = nn.Module()  # in place of tensors whose memory is gone

    def _run_on(self, lowered: Lowered) -> None:
        self._lowered = lowered
        # A list hides the module from nn.Module: its tensors are views of the q/dq graph's, or packed copies.
        self._run = [lowered.module]
        self._held = HeldMemory(self._run)

    def _take_adapters(self, adapters: Adapters) -> None:
        branches = adapters.branches()
        if branches or self._adapters.branches():
            # Read for this alone, where it is not in memory: lowering frees its weights again.
            graph = self.graph_module if self.reload is None else self.reload()
            chosen, alone = get_backend(self.backend), self.reload is not None
            graph = with_branches(graph, branches)
            self._run_on(chosen.lower(graph, self.options, release=alone and chosen.frees_weights))
        self._adapters = adapters

    @uncompiled
    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Same arguments and result as the original network's forward. Not differentiable.

        Raises:
            InputError: the call does not fit the network, an argument holds NaN, or a timestep is none that it could
                have been calibrated for.
        """
        refuse_hooks_inside(cast(nn.Module, self._modules["graph_module"]), type(self).__name__)
        call = self.signature.bind(args, kwargs)
        self._check_timestep(call.tensors)
        self._check_numbers(call.tensors)
        # Other parts of a pipeline were read, or were at work, since it was loaded or ran last.
        if self._just_loaded or self._timestep_position is None:
            self._just_loaded = False
            trim()
        with as_captured():
            outputs = handed_out(self._forward_flat(call.tensors), call.tensors, self._held)
        return self.signature.pack(outputs, call.return_dict)

    _just_loaded = False
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

    @classmethod
    def load(cls, folder: str | os.PathLike[str], backend: str, options: BackendOptions) -> QuantizedUNet:
        """Read a saved network and lower it. Raises ArtifactError, and BackendError like `get_backend`."""
        chosen = get_backend(backend)
        artifact = load_artifact(folder, keep_packed=chosen.frees_weights)
        release_unused()
        with lowering(Path(folder)):
            network = cls(
                artifact.graph_module,
                artifact.signature,
                artifact.config,
                backend,
                options,
                artifact.source,
                artifact.schedule,
                release=chosen.frees_weights,
            )
        if chosen.frees_weights:
            # Resolved: the working directory may be another one by then.
            network.reload = partial(_read_graph_again, Path(folder).resolve(), artifact.digest)
        release_unused()
        network._just_loaded = True
        return network

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write it as the component of a pipeline, which `pipe.save_pretrained` calls: see `storage/component.py`.

        Raises:
            ArtifactError: the folder holds something else, or the disk is full; nothing half-written stays.
        """
        save_component(self.to_artifact(), save_directory)

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
        **chosen: Any,
    ) -> QuantizedUNet:
        """Load a saved network or the component of a pipeline, as `DiffusionPipeline.from_pretrained` does.

        Args:
            name: a folder, or a repository "owner/name" of the hub.
            torch_dtype, dtype: what it is called in, by the name that diffusers' version has for it; see `to`.
            quantization_config: only None: it is quantized already.
            backend: what it runs on.
            subfolder, revision, cache_dir, token, local_files_only: see `storage.hub.located`.
            chosen: options of the backend.
        Raises:
            ArtifactError: it is missing, damaged, or of a newer version.
            ConfigError: it would be quantized twice, or an option is unknown.
        """
        check_settled(name, quantization_config)
        options = choose_options(get_backend(backend), chosen)
        folder = located(
            name,
            FILES,
            subfolder=subfolder,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )
        network = cls.load(network_in(folder), backend, options)
        if (given := dtype or torch_dtype) is not None:
            network.to(given)
        return network

    def register_to_config(self, **noted: Any) -> None:
        """What diffusers notes about a model once it is loaded; the network's configuration stays what it was."""

    def to_artifact(self) -> Artifact:
        """What of it is saved. Raises ConfigError where a LoRA is on: that is not."""
        if self.active_adapters():
            raise ConfigError(
                f"the LoRA {self.active_adapters()[0]!r} is beside it, and would be lost",
                where="save",
                fix="Call disable_lora() or unload_lora() first, and load it again beside what was saved",
            )
        return self._artifact()

    def computed_graph(self) -> fx.GraphModule:
        """The q/dq graph together with the LoRAs that are on: what is run."""
        return with_branches(self.graph_module, self._adapters.branches())

    def _artifact(self) -> Artifact:
        return Artifact(self.graph_module, self.signature, self.qconfig, self.source, self.schedule)

    def __reduce__(self) -> tuple[Any, ...]:
        """Raises ArtifactError where it cannot be saved."""
        files = to_files(partial(save_artifact, self._artifact()))
        return _read_quantized, (files, self.backend, self.options, self._adapters.to_files())

    def explain(self, *, verbose: bool = False) -> Explanation:
        """Every weight layer and attention: bits, scales, kernel, or why it is in float.

        Args:
            verbose: with details of how each runs.
        """
        return Explanation(self.backend, self._lowered.layers, verbose, self.signature.fixed_sizes)

    def layer_seconds(self, inputs: Mapping[str, Any]) -> dict[str, float]:
        """Layer → seconds of its kernel in a step, with what the kernel does besides; empty where nobody can tell.

        Args:
            inputs: the step's arguments by name.
        """
        return get_backend(self.backend).layer_seconds(self._run[0], lambda: self(**inputs))

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
        known = (self.source, self.schedule)
        return QuantizedUNet(
            self.graph_module, self.signature, self.qconfig, backend, options, *known, adapters=self._adapters
        )

    def _forward_flat(self, tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        run = self._run[0]
        groups = self._bin_groups(tensors)
        with in_words(f"backend {self.backend}"):
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


def _read_graph_again(folder: Path, digest: str) -> fx.GraphModule:
    return read_again(folder, digest).graph_module


def _read_quantized(
    files: Mapping[str, bytes], backend: str, options: BackendOptions, loras: Mapping[str, bytes] = NO_FILES
) -> QuantizedUNet:
    found = from_files(files, load_artifact)
    known, adapters = (found.source, found.schedule), Adapters.of_files(loras)
    return QuantizedUNet(found.graph_module, found.signature, found.config, backend, options, *known, adapters=adapters)
