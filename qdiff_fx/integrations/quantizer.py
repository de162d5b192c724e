"""`QDiffConfig` as a `quantization_config` of diffusers: the network is calibrated while it is loaded.

As GPTQ does it in transformers: what is not quantized yet is loaded in float, quantized there and then, and what
`from_pretrained` returns is quantized. Calibration takes a sampler and conditioning, which the pipeline around the
network has: that is loaded for it, with the network that is there already.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diffusers.quantizers.base import DiffusersQuantizer
from torch import nn

from qdiff_fx.config import QDiffConfig
from qdiff_fx.errors import ArtifactError, ConfigError, QDiffError
from qdiff_fx.sampling.denoiser import NAMES, denoiser_of
from qdiff_fx.storage.pipeline_index import INDEX, check_is_data

OTHERWISE = (
    "Load the whole pipeline with PipelineQuantizationConfig(quant_mapping={'unet': QDiffConfig(...)}), or load it in "
    "float and call qdiff_fx.quantize"
)


class QDiffQuantizer(DiffusersQuantizer):
    """What diffusers asks while it loads a network with a `QDiffConfig`.

    Raises:
        ArtifactError: the network is a quantized one, which has another class; or no pipeline is around it.
    """

    def __init__(self, quantization_config: QDiffConfig, **more: Any):
        super().__init__(quantization_config, **more)  # type: ignore[arg-type]  # it has what is asked of theirs
        self._config = quantization_config
        if self.pre_quantized:
            raise ArtifactError(
                "it holds a network of qdiff_fx",
                where="quantization_config",
                fix="Load it with qdiff_fx.load_qdiff, or with its pipeline",
            )
        self._files: list[Path] = []

    def validate_environment(self, *args: Any, device_map: Any = None, **more: Any) -> None:
        """Raises ConfigError for devices other than the processor, and QDiffError where diffusers lacks something."""
        if importlib.util.find_spec("accelerate") is None:
            raise QDiffError(
                "diffusers needs accelerate to load anything with a quantization_config",
                where="quantization_config",
                fix="pip install 'qdiff_fx[pipelines]', or load it in float and call qdiff_fx.quantize",
            )
        places = device_map.values() if isinstance(device_map, dict) else [device_map]
        elsewhere = [each for each in places if each is not None and str(each) != "cpu"]
        if elsewhere:
            raise ConfigError(
                f"it cannot be put on {elsewhere[0]!r}", where="device_map", fix="Leave it out, or say cpu"
            )

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: Iterable[Any]) -> list[str]:
        """The same keys; where the weights are is noted."""
        self._files = [Path(each) for each in checkpoint_files]
        return loaded_keys

    def _process_model_before_weight_loading(self, model: nn.Module, **more: Any) -> None:
        pass

    def _process_model_after_weight_loading(self, model: nn.Module, **more: Any) -> None:
        from qdiff_fx.workflow.one_call import quantize

        if not self._files:
            raise QDiffError(
                "this version of diffusers does not say where a network's weights are",
                where="from_pretrained",
                fix="Load it in float and call qdiff_fx.quantize",
            )
        pipe = pipeline_around(model, self._files[0].parent)
        become(model, denoiser_of(quantize(pipe, self._config, parts="unet")))

    @property
    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def pipeline_around(network: nn.Module, folder: Path) -> Any:
    """The pipeline whose component the folder is, with the network in it.

    Raises:
        ArtifactError: there is none, or it brings code.
        ConfigError: the network is none that is quantized.
    """
    if not (folder.parent / INDEX).is_file():
        raise ArtifactError("there is no pipeline around it to sample with", where=str(folder), fix=OTHERWISE)
    if folder.name not in NAMES:
        raise ConfigError(
            f"only the network that denoises is quantized, not a pipeline's {folder.name}",
            where="quantization_config",
            fix=OTHERWISE,
        )
    check_is_data(folder.parent)
    from diffusers import DiffusionPipeline

    parameter = next(network.parameters())
    return DiffusionPipeline.from_pretrained(folder.parent, torch_dtype=parameter.dtype, **{folder.name: network})


def become(network: nn.Module, quantized: nn.Module) -> None:
    """Make the one object the other: whoever holds the network holds the quantized one, and its weights are free.

    diffusers hands out the object that it built, whatever was made of it.
    """
    network.__class__ = type(quantized)
    network.__dict__.clear()
    network.__dict__.update(quantized.__dict__)
