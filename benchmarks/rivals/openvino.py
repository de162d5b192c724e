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
from benchmarks.rivals.compiled import MODEL_FILE, compiled

Hint = Literal["f32", "bf16"]
Preset = Literal["float", "default", "transformer"]


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

        model = openvino.convert_model(_export(unet, network))
        if self.preset != "float":
            model = _quantize(model, self.preset, batches)
        folder.mkdir(parents=True, exist_ok=True)
        openvino.save_model(model, folder / MODEL_FILE, compress_to_fp16=False)

    def load(self, network: Network, folder: Path) -> Predict:
        request = compiled(folder / MODEL_FILE, {"INFERENCE_PRECISION_HINT": self.hint}).create_infer_request()

        def step(sample: torch.Tensor, timestep: Any = None, **conditioning: torch.Tensor) -> torch.Tensor:
            given = {} if timestep is None else {"timestep": timestep}
            batch = {"sample": sample, **given, **conditioning}
            request.infer(_arrays(batch), share_inputs=True)
            return torch.from_numpy(request.get_output_tensor().data.copy())

        return step


class _Positional(nn.Module):
    """The network with positional tensor inputs and a tensor output: what an exporter likes best."""

    def __init__(self, unet: nn.Module, network: Network, names: list[str]):
        super().__init__()
        self.unet, self.network, self.names = unet, network, names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.network.predict(self.unet, **dict(zip(self.names, inputs, strict=True)))


def _export(unet: nn.Module, network: Network) -> torch.export.ExportedProgram:
    inputs = network.inputs()
    with torch.no_grad():
        return torch.export.export(_Positional(unet, network, list(inputs)), tuple(inputs.values()), strict=False)


def _quantize(model: Any, preset: Preset, batches: Iterable[Batch]) -> Any:
    import nncf

    kinds = {"default": None, "transformer": nncf.ModelType.TRANSFORMER}
    samples = [_arrays(batch) for batch in batches]
    return nncf.quantize(model, nncf.Dataset(samples), model_type=kinds[preset], subset_size=len(samples))


def _arrays(batch: Batch) -> list[Any]:
    """The inputs in their order, as numpy arrays; a scalar timestep is repeated for every image."""
    values = dict(batch)
    if "timestep" in batch:
        values["timestep"] = torch.as_tensor(batch["timestep"]).expand(batch["sample"].shape[0]).contiguous()
    return [value.numpy() for value in values.values()]


OPENVINO = {
    "openvino-f32": OpenVINO("f32"),
    "openvino-bf16": OpenVINO("bf16"),
    "openvino-int8-default-f32": OpenVINO("f32", "default"),
    "openvino-int8-default-bf16": OpenVINO("bf16", "default"),
    "openvino-int8-transformer-f32": OpenVINO("f32", "transformer"),
    "openvino-int8-transformer-bf16": OpenVINO("bf16", "transformer"),
}
