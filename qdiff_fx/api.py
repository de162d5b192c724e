"""The public calls, each a short list of steps."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qdiff_fx.backends import get_backend
from qdiff_fx.backends.common.options import choose_options
from qdiff_fx.config import QDiffConfig
from qdiff_fx.errors import CaptureError, ConfigError, FixedSizeWarning
from qdiff_fx.ir.edit import copy_graph
from qdiff_fx.networks import PreparedUNet, QuantizedUNet
from qdiff_fx.observers import Observer, TimestepObserver
from qdiff_fx.passes.canonicalize.canonicalize import Canonicalize
from qdiff_fx.passes.canonicalize.compute_in_float32 import ComputeInFloat32
from qdiff_fx.passes.framework import Pass, PassReport, Refusal, run_passes
from qdiff_fx.passes.quantize.annotate import Annotate
from qdiff_fx.passes.quantize.check_scales import check_weights
from qdiff_fx.passes.quantize.convert import convert
from qdiff_fx.passes.quantize.insert_observers import InsertObservers
from qdiff_fx.passes.split_shortcut.split_shortcut import SplitShortcut
from qdiff_fx.schedule import Schedule
from qdiff_fx.storage.artifact import save_artifact
from qdiff_fx.storage.prepared import load_prepared_artifact, save_prepared_artifact


def prepare_qdiff(
    model: nn.Module,
    config: QDiffConfig | None = None,
    example_inputs: Mapping[str, Any] | None = None,
    *,
    backend: str = "native",
    output_quantizers: bool = False,
    observer: type[Observer] = TimestepObserver,
    passes: Sequence[Pass] = (),
    weights: str | os.PathLike[str] | None = None,
) -> PreparedUNet:
    """Capture a UNet, split its shortcuts and put an observer on every tensor that will be quantized.

    Args:
        model: the trained network in eval mode; it is not changed.
        config: what to quantize and how; W8A8 by default.
        example_inputs: arguments of the network's ``forward`` by name, e.g.
            ``{"sample": (N, C, H, W), "timestep": t, "encoder_hidden_states": (N, L, D)}``. They decide which
            optional inputs exist; batch and, where the network allows, image size stay free.
        backend: what it is going to run on. "x86" and "qnnpack" quantize what layers return, which is then watched
            too; what was prepared for them runs on every backend.
        output_quantizers: watch what layers return, for converting to "reference" with ``output_quantizers``.
        observer: what watches: a class of one's own may record more than ranges and histograms.
        passes: rewrites of one's own, run in order on the canonical graph before layers are chosen.
        weights: safetensors to read the network's weights from: a folder, the index of a sharded checkpoint, or one
            file. ``model`` may then be built on the meta device; its memory is taken once. Weights have the types that
            the model's have.

    Returns:
        A network called like ``model`` that computes the same and watches its activations. Sizes that could not be left
        open are in its ``reports``, and a FixedSizeWarning says which and why.

    Raises:
        CaptureError: the model is in training mode, has weights on the meta device and none are given, or cannot be
            captured.
        ArtifactError: the weights are not the model's; the message names file and tensor.
        ConversionError: the weight of a layer that is to be quantized holds NaN or infinity.
        ConfigError: example inputs are missing or no mapping, the configuration is something else, or one of its rules
            matches no layer.
        BackendError: the backend is unknown or cannot run on this machine.
    """
    config, inputs = _checked_config(config), _checked_inputs(example_inputs)
    outputs = output_quantizers or get_backend(backend).quantizes_outputs
    from qdiff_fx.capture import capture  # brings all of sympy, which loading does without
    from qdiff_fx.capture.plain import require_plain
    from qdiff_fx.capture.weights import with_weights

    if weights is not None and isinstance(model, nn.Module):
        model = with_weights(model, weights)
    if isinstance(model, nn.Module):
        require_plain(model)
    _check_tensors(model)
    captured = capture(model, inputs)
    signature, fixed = captured.signature, captured.signature.fixed_sizes
    if fixed:
        warnings.warn(_fixed_in_words(fixed), FixedSizeWarning, stacklevel=2)
    graph = copy_graph(captured.module)  # what was captured may be prepared again
    if weights is not None:
        # Nobody is to hold what is replaced below (split weights are); what tracing leaves behind holds it in circles.
        del model, captured
        gc.collect()
    reports = run_passes(
        graph,
        [
            ComputeInFloat32(),  # half and double precision stay where they are stored: in weights, inputs and outputs
            Canonicalize(),  # one spelling per operation; attention written out by hand becomes one node
            SplitShortcut(config.split),  # conv(cat([a, b])) becomes conv(a) + conv(b)
            *passes,
            Annotate(config),  # which layers, how many bits
            # Watch their inputs, and what they return where it counts.
            InsertObservers(config, outputs=outputs, observer=observer),
        ],
    )
    check_weights(graph)
    left = PassReport("Capture", refused=tuple(Refusal(where, "", why) for where, why in fixed.items()))
    return PreparedUNet(graph, signature, config, [left, *reports] if fixed else reports)


def _fixed_in_words(fixed: Mapping[str, str]) -> str:
    reasons: dict[str, list[str]] = {}
    for where, why in fixed.items():
        reasons.setdefault(why, []).append(where)
    lines = [f"  {', '.join(places)}, because {why}" for why, places in reasons.items()]
    return "\n".join(
        [
            "These sizes of the inputs stay as in the example, in every call:",
            *lines,
            "Prepare with the sizes you need, or change the network there.",
        ]
    )


def _check_tensors(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        return  # capture says so
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise CaptureError(
                "it is on the meta device and holds no numbers",
                where=name,
                fix="Say where its weights are (weights=...), or load them first",
            )


def _checked_config(config: object) -> QDiffConfig:
    if config is None:
        return QDiffConfig()
    if isinstance(config, QDiffConfig):
        return config
    raise ConfigError(
        f"expected a QDiffConfig, not a {type(config).__name__}",
        where="config",
        fix="Write QDiffConfig(weight_bits=4, ...); QDiffConfig(**settings) takes a dictionary of its fields",
    )


def _checked_inputs(inputs: object) -> Mapping[str, Any]:
    if isinstance(inputs, Mapping) and inputs:
        return inputs
    given = "no" if inputs is None or isinstance(inputs, Mapping) else f"a {type(inputs).__name__} of"
    raise ConfigError(
        f"the network cannot be captured with {given} example inputs",
        where="example_inputs",
        fix='Pass a mapping of forward arguments, e.g. {"sample": x, "timestep": t}',
    )


def convert_qdiff(
    prepared: PreparedUNet,
    backend: str = "native",
    *,
    config: QDiffConfig | None = None,
    compute_dtype: torch.dtype | None = None,
    output_quantizers: bool = False,
    compile: bool = True,
    reuse: bool = True,
    source: str = "",
    schedule: Schedule | None = None,
    **more: Any,
) -> QuantizedUNet:
    """Turn a calibrated network into integers and lower it for a backend.

    Args:
        prepared: what ``prepare_qdiff`` returned, after calibration; it is not changed.
        backend: "native", "inductor", "x86", "qnnpack" or "reference".
        config: other bits, ranges or rules than it was prepared with, on the same statistics; see
            ``PreparedUNet.with_config``.
        compute_dtype: float type between integer operations; by default float16 for ``native``, else float32.
        output_quantizers: quantize layer outputs too, as torch.ao's kernels do (``reference``).
        compile: hand the lowered graph to ``torch.compile`` (``inductor``).
        reuse: remember what depends on the timestep or on the conditioning alone (``native``).
        source: where the float network came from; kept in the saved folder.
        schedule: the steps it was calibrated along, see ``optimize_schedule``; kept likewise.
        more: options of backends that others registered.

    Raises:
        CalibrationError: an observer saw no data.
        ConfigError: an option was set that the backend does not have, or `config` needs what was not observed.
        BackendError: the backend is unknown or cannot run on this machine.
    """
    given = {
        "compute_dtype": compute_dtype,
        "output_quantizers": output_quantizers,
        "compile": compile,
        "reuse": reuse,
        **more,
    }
    options = choose_options(get_backend(backend), given)
    prepared = prepared if config is None else prepared.with_config(config)
    graph = convert(prepared.graph_module, prepared.qconfig, prepared.decided)
    return QuantizedUNet(graph, prepared.signature, prepared.qconfig, backend, options, source, schedule)


def save_qdiff(quantized: QuantizedUNet, folder: str | os.PathLike[str]) -> Path:
    """Save a quantized network as one self-contained folder; 4-bit codes are packed two to a byte.

    Raises:
        ArtifactError: the folder holds something else, or the disk is full; nothing half-written stays.
    """
    return save_artifact(quantized.to_artifact(), folder)


def save_prepared(prepared: PreparedUNet, folder: str | os.PathLike[str]) -> Path:
    """Save a prepared network with what its observers saw and what was decided, to go on from there another time.

    Raises:
        ArtifactError: the folder holds something else, or the disk is full; nothing half-written stays.
    """
    return save_prepared_artifact(prepared.to_artifact(), folder)


def load_prepared(folder: str | os.PathLike[str]) -> PreparedUNet:
    """Load what ``save_prepared`` wrote: it calibrates further, is rounded, merged and converted as before.

    No original class, no forward pass, no pickle.

    Raises:
        ArtifactError: the folder is missing, damaged, or of a newer version.
    """
    return PreparedUNet.of_artifact(load_prepared_artifact(folder))


def load_qdiff(
    name: str | os.PathLike[str],
    backend: str = "native",
    *,
    compute_dtype: torch.dtype | None = None,
    output_quantizers: bool = False,
    compile: bool = True,
    reuse: bool = True,
    subfolder: str = "",
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    **more: Any,
) -> QuantizedUNet:
    """Load a saved network for any backend: no float weights, no original class, no forward pass, no pickle.

    Args:
        name: the folder, that of a pipeline's component included; or a repository "owner/name" of the Hugging Face Hub.
        backend, compute_dtype, output_quantizers, compile, reuse, more: as for ``convert_qdiff``.
        subfolder: of the folder or repository, such as "unet".
        revision: a branch, tag or commit of the repository; a commit is the same files for ever.
        cache_dir: where files of the hub are kept; its own cache by default.
        token: of an account that may read the repository; by default the one that is logged in.
        local_files_only: take what was fetched before, ask no network.

    Raises:
        ArtifactError: the folder is missing, damaged, or of a newer version; or the hub does not give it.
        ConfigError: an option was set that the backend does not have, or a revision of a folder that is no repository.
        BackendError: the backend is unknown or cannot run on this machine.
    """
    given = {
        "compute_dtype": compute_dtype,
        "output_quantizers": output_quantizers,
        "compile": compile,
        "reuse": reuse,
        **more,
    }
    return QuantizedUNet.from_pretrained(
        name,
        backend=backend,
        subfolder=subfolder,
        revision=revision,
        cache_dir=cache_dir,
        token=token,
        local_files_only=local_files_only,
        **given,
    )
