"""OpenVINO on the CPU, in float or quantized to int8 by NNCF. Needs the `bench` extra."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from benchmarks.contender import Batch, Predict
from benchmarks.networks import Network
from qdiff_fx.evaluation import predict

Hint = Literal["f32", "bf16"]
Preset = Literal["float", "default", "transformer"]
MODEL_FILE = "model.xml"


@dataclass(frozen=True)
class OpenVINO:
    """One IR (as it is, or quantized with one of NNCF's presets) run at one precision hint.

    Attributes:
        hint: the float type between integer ops, or of everything.
        preset: "float" does not quantize; "default" is ``nncf.quantize`` as it comes; "transformer" is
            ``model_type=TRANSFORMER``: SmoothQuant and mixed symmetry.
    """

    hint: Hint
    preset: Preset = "float"

    @property
    def artifact(self) -> str:
        return f"openvino-{self.preset}"

    def prepare(self, unet: nn.Module, network: Network, batches: Iterable[Batch], folder: Path) -> None:
        import openvino

        model = openvino.convert_model(_export(unet, network.inputs()))
        if self.preset != "float":
            model = _quantize(model, self.preset, batches)
        folder.mkdir(parents=True, exist_ok=True)
        openvino.save_model(model, folder / MODEL_FILE, compress_to_fp16=False)

    def load(self, network: Network, folder: Path) -> Predict:
        import openvino

        settings = {
            "INFERENCE_PRECISION_HINT": self.hint,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = openvino.Core().compile_model(folder / MODEL_FILE, "CPU", settings)
        request = compiled.create_infer_request()

        def step(sample: torch.Tensor, timestep: Any, **conditioning: torch.Tensor) -> torch.Tensor:
            batch = {"sample": sample, "timestep": timestep, **conditioning}
            request.infer(_arrays(batch), share_inputs=True)
            return torch.from_numpy(request.get_output_tensor().data.copy())

        return step


class _Positional(nn.Module):
    """The network with positional tensor inputs and a tensor output: what an exporter likes best."""

    def __init__(self, unet: nn.Module, conditioning: list[str]):
        super().__init__()
        self.unet, self.conditioning = unet, conditioning

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return predict(self.unet, sample, timestep, **dict(zip(self.conditioning, rest, strict=True)))


def _export(unet: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.export.ExportedProgram:
    conditioning = [name for name in inputs if name not in ("sample", "timestep")]
    with torch.no_grad():
        return torch.export.export(_Positional(unet, conditioning), tuple(inputs.values()), strict=False)


def _quantize(model: Any, preset: Preset, batches: Iterable[Batch]) -> Any:
    import nncf

    kinds = {"default": None, "transformer": nncf.ModelType.TRANSFORMER}
    samples = [_arrays(batch) for batch in batches]
    return nncf.quantize(model, nncf.Dataset(samples), model_type=kinds[preset], subset_size=len(samples))


def _arrays(batch: Batch) -> list[Any]:
    """The inputs in their order, as numpy arrays; a scalar timestep is repeated for every image."""
    images = batch["sample"].shape[0]
    values = dict(batch)
    values["timestep"] = torch.as_tensor(batch["timestep"]).expand(images).contiguous()
    return [value.numpy() for value in values.values()]


OPENVINO = {
    "openvino-f32": OpenVINO("f32"),
    "openvino-bf16": OpenVINO("bf16"),
    "openvino-int8-default-f32": OpenVINO("f32", "default"),
    "openvino-int8-default-bf16": OpenVINO("bf16", "default"),
    "openvino-int8-transformer-f32": OpenVINO("f32", "transformer"),
    "openvino-int8-transformer-bf16": OpenVINO("bf16", "transformer"),
}
