"""Networks that are pickled, copied or handed to another process stay what they are."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
import pickletools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qdiff_fx import (
    PreparedUNet,
    QDiffConfig,
    QuantizedUNet,
    calibrate,
    convert_qdiff,
    load_qdiff,
    prepare_qdiff,
    round_weights,
    save_qdiff,
)
from qdiff_fx.errors import ArtifactError
from qdiff_fx.observers import TimestepObserver
from qdiff_fx.storage.pickled import from_files


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = (
            nn.Conv2d(*channels, 3, padding=1) for channels in ((3, 8), (8, 8), (8, 3))
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.last(torch.relu(self.middle(torch.relu(self.first(x))))) + t[:, None, None, None] / 1000


INPUTS = {"x": torch.linspace(-2, 3, 2 * 3 * 64).reshape(2, 3, 8, 8), "t": torch.tensor([30.0, 700.0])}


@pytest.fixture(scope="module")
def prepared() -> PreparedUNet:
    torch.manual_seed(0)
    network = prepare_qdiff(Net().eval(), QDiffConfig(weight_bits=4), INPUTS)
    calibrate(network, [INPUTS], progress=False)
    round_weights(network, [INPUTS], progress=False)
    return network


@pytest.fixture(scope="module", params=["reference", "native"])
def quantized(request: pytest.FixtureRequest, prepared: PreparedUNet) -> QuantizedUNet:
    options = {"reuse": False} if request.param == "native" else {}
    return convert_qdiff(prepared, request.param, source="somewhere", **options)


def pickled(network: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(network))


def saved_by_torch(network: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(network, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


WAYS = [pickled, saved_by_torch, copy.copy, copy.deepcopy]


@pytest.mark.parametrize("way", WAYS)
def test_a_quantized_network(quantized: QuantizedUNet, way) -> None:
    twin = way(quantized)
    assert torch.equal(twin(**INPUTS), quantized(**INPUTS))
    for name in ("backend", "options", "qconfig", "signature", "source"):
        assert getattr(twin, name) == getattr(quantized, name)


@pytest.mark.parametrize("way", WAYS)
def test_a_prepared_network(prepared: PreparedUNet, way) -> None:
    twin = way(prepared)
    assert torch.equal(convert_qdiff(twin, "reference")(**INPUTS), convert_qdiff(prepared, "reference")(**INPUTS))
    assert (twin.qconfig, twin.signature, twin.reports) == (prepared.qconfig, prepared.signature, prepared.reports)
    assert twin.decided == prepared.decided


def test_a_network_that_freed_its_weights_is_pickled_from_its_folder(quantized: QuantizedUNet, tmp_path) -> None:
    folder = save_qdiff(quantized, tmp_path / "saved")
    loaded = load_qdiff(folder, quantized.backend)
    assert torch.equal(pickled(loaded)(**INPUTS), loaded(**INPUTS))


def test_a_deep_copy_has_its_own_observers(prepared: PreparedUNet) -> None:
    twin = copy.deepcopy(prepared)
    before = {name: buffer.clone() for name, buffer in prepared.named_buffers()}
    twin(INPUTS["x"] * 100, INPUTS["t"])
    assert all(torch.equal(buffer, before[name]) for name, buffer in prepared.named_buffers())


def test_a_pickle_holds_nothing_but_bytes_and_options(quantized: QuantizedUNet) -> None:
    """No fx graph, no class of the network, no code."""
    codes = pickletools.genops(pickle.dumps(quantized, protocol=2))
    names = {argument for code, argument, _ in codes if code.name == "GLOBAL"}
    known = {
        "qdiff_fx.networks.quantized _read_quantized",
        "_codecs encode",
        "copyreg _reconstructor",
        "__builtin__ object",
    }
    assert {name for name in names - known if "Options" not in name and not name.startswith("torch float")} == set()


class _Observer(TimestepObserver):
    """Of the user's own."""


def test_what_cannot_be_saved_says_so() -> None:
    network = prepare_qdiff(Net().eval(), QDiffConfig(), INPUTS, observer=_Observer)
    with pytest.raises(ArtifactError, match="_Observer cannot be saved"):
        pickle.dumps(network)
    copy.deepcopy(network)


def test_a_name_cannot_leave_the_folder() -> None:
    with pytest.raises(ArtifactError, match="it holds a file called '../network/a'"):
        from_files({"../network/a": b""}, lambda folder: folder)


def _answer(network: QuantizedUNet, inputs: dict[str, Tensor], answers) -> None:
    answers.send_bytes(network(**inputs).numpy().tobytes())


@pytest.mark.slow
def test_a_spawned_process_takes_one_as_an_argument(quantized: QuantizedUNet) -> None:
    answers, theirs = multiprocessing.get_context("spawn").Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_answer, args=(quantized, INPUTS, theirs))
    process.start()
    answer = answers.recv_bytes() if answers.poll(100) else b""
    process.join()
    assert answer == quantized(**INPUTS).numpy().tobytes()
