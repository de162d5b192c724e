"""A pipeline of diffusers whose networks OpenVINO runs, as optimum-intel makes it: one IR of open sizes for each part.

Two ways of optimum-intel's documentation: full quantization, here of every part; and its hybrid, which it advises for
diffusion pipelines: weights of the UNet's matrix products to 8 bits, weights and activations of its other layers too,
and of all other parts the weights alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.rivals.compiled import MODEL_FILE, compiled
from benchmarks.whole.subject import DECODER, UNET, Subject, network_at

Way = Literal["float", "int8", "hybrid"]
Call = Mapping[str, Tensor]
STEPS_OF_TRAINED, STEPS_OF_RANDOM = 25, 2


@dataclass(frozen=True)
class OpenVINOPipeline:
    """All networks of a pipeline as IRs; the float type between integers is the one that OpenVINO chooses."""

    way: Way

    @property
    def artifact(self) -> str:
        return f"openvino-{self.way}"

    def prepare(self, subject: Subject, floats: Path, folder: Path) -> None:
        import openvino

        calls = _calls(subject, floats)
        for part, place in subject.parts.items():
            model = _converted(network_at(subject.load(floats), place), calls[part][0])
            (folder / place).mkdir()
            unchanged = folder / place / f"float-{MODEL_FILE}"
            # Written and read again: its weights are then in a file, and the pipeline's can go.
            openvino.save_model(model, unchanged, compress_to_fp16=False)
            del model
            read = openvino.Core().read_model(unchanged)
            quantized = self._quantized(read, part, calls[part], subject.trained)
            openvino.save_model(quantized, folder / place / MODEL_FILE, compress_to_fp16=False)
            del read, quantized
            for file in (unchanged, unchanged.with_suffix(".bin")):
                file.unlink()

    def _quantized(self, model: Any, part: str, calls: Sequence[Call], exactly: bool) -> Any:
        import nncf

        if self.way == "float":
            return model
        if self.way == "hybrid" and part != UNET:
            return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
        options: dict[str, Any] = {} if part == DECODER else {"model_type": nncf.ModelType.TRANSFORMER}
        # A bias takes as long whatever it is.
        advanced = nncf.AdvancedQuantizationParameters(disable_bias_correction=not exactly)
        if self.way == "hybrid":
            products = list(_products_with_weights(model))
            model = nncf.compress_weights(
                model,
                mode=nncf.CompressWeightsMode.INT8_ASYM,
                ignored_scope=nncf.IgnoredScope(types=["Convolution"], validate=False),
            )
            options["ignored_scope"] = nncf.IgnoredScope(names=products)
            advanced.smooth_quant_alphas = nncf.AdvancedSmoothQuantParameters(matmul=-1)
        samples = nncf.Dataset([_arrays(call) for call in calls])
        return nncf.quantize(model, samples, subset_size=len(calls), advanced_parameters=advanced, **options)

    def load(self, subject: Subject, floats: Path, folder: Path) -> Any:
        parts = {place: Compiled(folder / place / MODEL_FILE) for place in subject.parts.values()}
        components: dict[str, Any] = {place: part for place, part in parts.items() if "." not in place}
        if (decoder := parts.get(subject.parts.get(DECODER, ""))) is not None:
            components["vae"] = _with_decoder(floats, decoder)
        for place, part in components.items():
            if isinstance(part, Compiled) and (floats / place).is_dir():
                part.configured_like(floats / place)
        return subject.assembled(floats, components)


class Compiled(nn.Module):
    """A network in OpenVINO, called as the one that it stands for; compiled for the sizes of its first call.

    Sizes that are fixed are what it runs best with.
    """

    def __init__(self, file: Path):
        super().__init__()
        self._file = file
        self._request: Any = None
        self._sizes: list[list[int]] = []
        self.config: Any = None

    dtype, device = torch.float32, torch.device("cpu")

    def configured_like(self, folder: Path) -> None:
        """Pipelines read the configuration of their networks."""
        self.config = SimpleNamespace(**json.loads((folder / "config.json").read_text()))

    def forward(self, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        import openvino

        if self._request is None:
            self._model = openvino.Core().read_model(self._file)
            self._names = [each.get_any_name() for each in self._model.inputs]
        given = dict(zip(self._names, args, strict=False)) | {
            name: kwargs[name] for name in self._names if name in kwargs
        }
        call = _arrays({name: torch.as_tensor(given[name]) for name in self._names})
        sizes = [list(each.shape) for each in call]
        if sizes != self._sizes:
            self._model.reshape(dict(zip(self._model.inputs, sizes, strict=True)))
            self._request, self._sizes = compiled(self._model).create_infer_request(), sizes
        self._request.infer(call, share_inputs=True)
        found = torch.from_numpy(self._request.get_output_tensor(0).data.copy())
        return self._answer(found, return_dict)

    def _answer(self, found: Tensor, return_dict: bool) -> Any:
        if self._file.parent.name.endswith("decoder"):
            return found
        return _Output(found) if return_dict else (found,)


class _Output(tuple[Tensor]):
    """What a text encoder returns, or a UNet."""

    def __new__(cls, found: Tensor) -> _Output:
        return super().__new__(cls, (found,))

    @property
    def sample(self) -> Tensor:
        return self[0]


class _Positional(nn.Module):
    """The network with positional tensors for inputs and a tensor for its output."""

    def __init__(self, network: nn.Module, names: Iterable[str]):
        super().__init__()
        self.network, self.names = network, list(names)

    def forward(self, *inputs: Tensor) -> Tensor:
        from qdiff_fx.sampling.prediction import prediction_of  # which loading, that is timed, does without

        return prediction_of(self.network(**dict(zip(self.names, inputs, strict=True))))


class _Enough(Exception):
    """The decoder was called: nobody looks at the image."""


def _calls(subject: Subject, floats: Path) -> dict[str, list[Call]]:
    """What every part is called with while the float pipeline draws, by the names of its arguments."""
    from qdiff_fx.sampling.recorder import watching

    pipe = subject.load(floats)
    calls: dict[str, list[Call]] = {part: [] for part in subject.parts}

    def hear(part: str, inputs: Mapping[str, Any]) -> None:
        calls[part].append({name: each.clone() for name, each in inputs.items() if isinstance(each, Tensor)})
        if part == DECODER:
            raise _Enough

    with ExitStack() as stack:
        for part, place in subject.parts.items():
            before = lambda inputs, part=part: hear(part, inputs)  # noqa: E731
            stack.enter_context(watching(network_at(pipe, place), before=before))
        stack.enter_context(suppress(_Enough))
        pipe(**subject.arguments(STEPS_OF_TRAINED if subject.trained else STEPS_OF_RANDOM, subject.guidance))
    return calls


def _converted(network: nn.Module, example: Call) -> Any:
    import openvino

    with torch.no_grad():
        model = openvino.convert_model(_Positional(network.eval(), example), example_input=tuple(example.values()))
    for argument, name in zip(model.inputs, example, strict=True):
        argument.get_tensor().set_names({name})
    return model


def _products_with_weights(model: Any) -> Iterable[str]:
    """Matrix products with a constant, and tables that are looked up in."""
    for operation in model.get_ops():
        inputs = operation.inputs()
        table = operation.get_type_name() == "Gather" and inputs[0].get_element_type().is_real()
        read = inputs if operation.get_type_name() == "MatMul" else inputs[:1] if table else []
        if any(map(_is_constant, read)):
            yield operation.get_friendly_name()


def _is_constant(argument: Any) -> bool:
    """Through what only says how it is stored."""
    node = argument.get_source_output().get_node()
    while node.get_type_name() in ("Convert", "Reshape", "FakeQuantize"):
        node = node.input_value(0).get_node()
    constant: bool = node.get_type_name() == "Constant"
    return constant


def _with_decoder(floats: Path, decoder: Compiled) -> Any:
    """The autoencoder around it, without its encoder."""
    from diffusers import AutoencoderKL

    autoencoder: Any = AutoencoderKL.from_pretrained(floats / "vae")
    autoencoder.decoder, autoencoder.encoder = decoder, None
    return autoencoder


def _arrays(call: Call) -> list[Any]:
    return [each.numpy() for each in call.values()]


OPENVINO_PIPELINES = {
    "openvino-float": OpenVINOPipeline("float"),
    "openvino-int8": OpenVINOPipeline("int8"),
    "openvino-hybrid": OpenVINOPipeline("hybrid"),
}
