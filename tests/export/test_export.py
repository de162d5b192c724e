"""Exported networks compute what the reference computes, in other runtimes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from tiny_graphs import Shortcut
from torch import nn
from typer.testing import CliRunner

from benchmarks.networks import shared_folder
from qdiff_fx import QDiffConfig, QuantizedUNet, calibrate, convert_qdiff, export_qdiff, prepare_qdiff, save_qdiff
from qdiff_fx.cli import app
from qdiff_fx.errors import ArtifactError, BackendError, ConfigError
from qdiff_fx.evaluation import eps_sqnr
from qdiff_fx.export.plain import plain_graph
from qdiff_fx.quant.numerics import sqnr_db
from qdiff_fx.sources import SampleRequest, resolve

TIMESTEPS = (900, 480, 20)
Network = Callable[..., torch.Tensor]
Runtime = Callable[[Path], Network]


def inputs(timestep: int, batch: int = 2, size: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(timestep)
    return {"x": torch.randn(batch, 3, size, size, generator=generator), "t": torch.full((batch,), timestep)}


def quantized(model: nn.Module, examples: list[dict[str, Any]], **config: Any) -> QuantizedUNet:
    torch.manual_seed(0)
    prepared = prepare_qdiff(model.eval(), QDiffConfig(weight_rounding="nearest", **config), examples[0])
    calibrate(prepared, examples, progress=False)
    return convert_qdiff(prepared, "reference")


@pytest.fixture(scope="module")
def network() -> QuantizedUNet:
    torch.manual_seed(0)
    return quantized(Shortcut(), [inputs(each) for each in TIMESTEPS], weight_bits=4)


@pytest.fixture(scope="module")
def model(network: QuantizedUNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_qdiff(network, tmp_path_factory.mktemp("onnx") / "network.onnx")


def in_onnxruntime(file: Path) -> Network:
    session = onnxruntime.InferenceSession(file)
    names = [each.name for each in session.get_inputs()]

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        (found,) = session.run(None, {name: each.numpy() for name, each in zip(names, tensors, strict=True)})
        return torch.from_numpy(found)

    return run


def in_openvino(file: Path) -> Network:
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'qdiff_fx[bench]'")
    compiled = openvino.Core().compile_model(file, "CPU", AS_WRITTEN)

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        found = compiled([each.numpy() for each in tensors])
        return torch.from_numpy(found[0])

    return run


AS_WRITTEN = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""What OpenVINO computes is what the file says: by itself it quantizes inputs of linear layers once more."""

RUNTIMES = pytest.mark.parametrize("runtime", [in_onnxruntime, in_openvino])


@RUNTIMES
def test_onnx_computes_what_the_reference_does(network: QuantizedUNet, model: Path, runtime: Runtime) -> None:
    run = runtime(model)
    for timestep, batch, size in ((900, 2, 8), (20, 1, 8), (480, 3, 12)):
        given = inputs(timestep, batch, size)
        expected = network(**given)
        assert sqnr_db(expected, run(*given.values())) > 40  # codes at the edge of two
        # The timestep chooses scales.
        other = run(given["x"], torch.full((batch,), 480 if timestep != 480 else 20))
        assert sqnr_db(expected, other) < 30


def test_the_model_is_standard_and_small(model: Path) -> None:
    read = onnx.load(model)
    onnx.checker.check_model(read)
    assert {node.domain for node in read.graph.node} == {""}
    assert [opset.version for opset in read.opset_import if not opset.domain] == [21]
    assert [each.name for each in read.graph.output] == ["out_sample"]
    kinds = [each.data_type for each in read.graph.initializer]
    # conv_in and conv_out have eight bits, as edges do; the shortcut is two layers.
    assert (kinds.count(onnx.TensorProto.INT4), kinds.count(onnx.TensorProto.INT8)) == (7, 2)
    sizes = [dim.dim_param or dim.dim_value for dim in read.graph.input[0].type.tensor_type.shape.dim]
    assert sizes[:2] == ["batch", 3]
    assert all(isinstance(each, str) and not each.startswith("s") for each in sizes[2:])


def test_a_program_computes_the_same(network: QuantizedUNet, tmp_path: Path) -> None:
    program = torch.export.load(export_qdiff(network, tmp_path / "network.pt2"))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert any("quantize_per_tensor" in name for name in called)
    assert not any(name.startswith("qdiff") for name in called)
    for timestep, batch in ((900, 2), (20, 3)):
        given = inputs(timestep, batch)
        (found,) = program.module()(*given.values())
        assert sqnr_db(network(**given), found) > 60


class Masked(nn.Module):
    """Attention alone."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, k * 2, attn_mask=mask)


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("kind", ["numbers", "bool", "nothing attended"])
def test_attention_is_written_out(bits: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(1)
    q, k = torch.randn(2, 2, 3, 6, 8, generator=generator)
    mask = torch.randn(1, 1, 6, 6, generator=generator)
    if kind != "numbers":
        mask = (
            mask > 0
            if kind == "bool"
            else torch.zeros(1, 1, 6, 6, dtype=torch.bool).index_fill(2, torch.tensor(0), True)
        )
    given = {"q": q, "k": k, "mask": mask}
    found = quantized(Masked(), [given], softmax_bits=bits)
    plain = plain_graph(found.graph_module)
    assert not [node for node in plain.graph.nodes if "int_attention" in str(node.target)]
    (written,) = plain(q, k, mask)
    assert bool(written.isfinite().all())
    torch.testing.assert_close(written, found(**given), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["network.tflite", "network"])
def test_other_endings_are_refused(network: QuantizedUNet, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"is no format that networks are exported to. Write network.onnx or"):
        export_qdiff(network, tmp_path / name)


def test_a_missing_package_is_named(network: QuantizedUNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(ConfigError, match=r"onnxscript is not installed. pip install 'qdiff_fx\[onnx\]'"):
        export_qdiff(network, tmp_path / "network.onnx")


def test_nothing_half_written_stays(network: QuantizedUNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="network.pt2"):
        export_qdiff(network, tmp_path / "file" / "network.pt2")
    monkeypatch.setattr("qdiff_fx.export.onnx_file.LARGEST", 100)
    with pytest.raises(BackendError, match="a file of ONNX holds 100"):
        export_qdiff(network, tmp_path / "network.onnx")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_from_the_command_line(network: QuantizedUNet, tmp_path: Path) -> None:
    save_qdiff(network, tmp_path / "saved")
    done = CliRunner().invoke(app, ["export", str(tmp_path / "saved"), "--out", str(tmp_path / "x.pt2")])
    assert done.exit_code == 0, done.output
    assert "wrote " in done.stdout
    given = inputs(900)
    (found,) = torch.export.load(tmp_path / "x.pt2").module()(*given.values())
    assert sqnr_db(network(**given), found) > 60


def fidelity_of_onnx(source: str, steps: int, folder: Path, runtime: Runtime) -> tuple[float, float]:
    """Mean ε SQNR of the reference and of the exported network, against the float network."""
    origin = resolve(source)
    origin.progress = False
    data = origin.calibration_data(SampleRequest(2, steps, 1), every=1, progress=False)
    config = QDiffConfig(num_train_timesteps=origin.num_train_timesteps)
    prepared = prepare_qdiff(origin.unet, config, data[0])
    calibrate(prepared, data, progress=False)
    network = convert_qdiff(prepared, "reference")
    exported = runtime(export_qdiff(network, folder / "network.onnx"))
    trajectory = origin.trajectory(SampleRequest(2, steps, 2))

    def predict(*args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
        return (exported(*network.signature.bind(args, kwargs).tensors),)

    means = [sum(found) / len(found) for found in (eps_sqnr(network, trajectory), eps_sqnr(predict, trajectory))]
    print(f"{source}: reference {means[0]:.2f} dB, {runtime.__name__} {means[1]:.2f} dB")
    return means[0], means[1]


@pytest.mark.slow
@RUNTIMES
def test_onnx_is_as_good_as_the_reference_on_digits(tmp_path: Path, runtime: Runtime) -> None:
    reference, exported = fidelity_of_onnx("digits", 6, tmp_path, runtime)
    assert exported == pytest.approx(reference, abs=0.1)


@pytest.mark.slow
@pytest.mark.real_model
@RUNTIMES
def test_onnx_is_as_good_as_the_reference_on_a_trained_network(tmp_path: Path, runtime: Runtime) -> None:
    source = shared_folder() / "models" / "anime-ddpm-64" / "model.py"
    if not source.is_file():
        pytest.skip(f"the trained 63 M network is not at {source}")
    reference, exported = fidelity_of_onnx(str(source), 6, tmp_path, runtime)
    assert exported == pytest.approx(reference, abs=0.1)
