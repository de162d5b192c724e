"""A build of torch without torch.ao: everything works but the backends that are made of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qdiff_fx.kernels import quantized_decomposed

SCRIPT = '''
import sys
from pathlib import Path
import torch

class NoTorchAO:
    """Finds nothing of torch.ao beyond what torch itself has imported already."""

    def find_spec(self, name, path=None, target=None):
        if name.startswith("torch.ao."):
            raise ImportError(f"{name} is gone")

sys.meta_path.insert(0, NoTorchAO())
from tiny_graphs import Shortcut
from qdiff_fx import QDiffConfig, calibrate, convert_qdiff, load_qdiff, prepare_qdiff, save_qdiff
from qdiff_fx.backends import get_backend
from qdiff_fx.errors import BackendError

assert not hasattr(torch.ops.quantized_decomposed, "choose_qparams")  # torch's own are not there
torch.manual_seed(0)
inputs = {"x": torch.randn(2, 3, 8, 8), "t": torch.tensor([20, 20])}
prepared = prepare_qdiff(Shortcut().eval(), QDiffConfig(), inputs)
with torch.no_grad():
    prepared(**inputs)
reference, native = (convert_qdiff(prepared, backend) for backend in ("reference", "native"))
assert (reference(**inputs) - native(**inputs)).abs().max() < 0.05
saved = save_qdiff(native, Path(sys.argv[1]) / "saved")
assert torch.equal(load_qdiff(saved)(**inputs), native(**inputs))
assert torch.equal(load_qdiff(saved, "reference")(**inputs), reference(**inputs))
for name in ("x86", "qnnpack"):
    try:
        get_backend(name)
    except BackendError as error:
        assert "no torch.ao" in str(error) and "native" in str(error), error
    else:
        raise AssertionError(name)
'''


def test_a_network_is_prepared_converted_saved_and_loaded(tmp_path):
    tests = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def ours():
    quantized_decomposed.define("qdiff_test_decomposed")
    return torch.ops.qdiff_test_decomposed


X = torch.cat([torch.randn(7, 5) * 10, torch.tensor([[0.5, 1.5, 2.5, -0.5, 1e9]])])
THEIRS = torch.ops.quantized_decomposed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_our_definitions_compute_what_torchs_do(ours, dtype):
    scale, zero_point, tail = 0.37, 100, (0, 255, torch.uint8)
    codes = THEIRS.quantize_per_tensor(X.to(dtype), scale, zero_point, *tail)
    assert torch.equal(ours.quantize_per_tensor(X.to(dtype), scale, zero_point, *tail), codes)
    tensors = torch.tensor([scale]), torch.tensor([zero_point])
    by_tensors = THEIRS.quantize_per_tensor.tensor(X.to(dtype), *tensors, *tail)
    assert torch.equal(ours.quantize_per_tensor.tensor(X.to(dtype), *tensors, *tail), by_tensors)
    for found in (ours.dequantize_per_tensor.default, ours.dequantize_per_tensor.tensor):
        theirs = getattr(THEIRS.dequantize_per_tensor, found._overloadname)
        given = tensors if found._overloadname == "tensor" else (scale, zero_point)
        assert torch.equal(found(codes, *given, *tail), theirs(codes, *given, *tail))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("zero_points", [False, True])
def test_per_channel_too(ours, axis, zero_points):
    codes = torch.randint(-128, 128, (6, 4), dtype=torch.int8)
    scales = torch.rand(codes.shape[axis]) + 0.1
    zeros = torch.arange(codes.shape[axis]) if zero_points else None
    args = (codes, scales, zeros, axis, -128, 127, torch.int8)
    assert torch.equal(ours.dequantize_per_channel(*args), THEIRS.dequantize_per_channel(*args))
