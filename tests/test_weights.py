"""Networks built without weights, which are read shard by shard."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.networks import get_network
from qdiff_fx import prepare_qdiff
from qdiff_fx.capture.weights import with_weights
from qdiff_fx.errors import ArtifactError, CaptureError
from qdiff_fx.quant.numerics import sqnr_db

SHARDS = 3


PREPARES = """
import sys, torch
from benchmarks.memory import peak_rss_bytes
from qdiff_fx import prepare_qdiff
def network(layers, width):
    return torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(layers))).half().eval()
def inputs(width):
    return {"input": torch.zeros(2, width, dtype=torch.half)}
prepare_qdiff(network(2, 8), example_inputs=inputs(8))
before = peak_rss_bytes()
with torch.device("meta"):
    model = network(60, 1448)
prepared = prepare_qdiff(model, example_inputs=inputs(1448), weights=sys.argv[1])
print(peak_rss_bytes() - before)
"""


class Net(nn.Module):
    """Tied weights, a buffer that is saved, and half precision inside."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.last = nn.Linear(4, 2).half()
        self.register_buffer("mean", torch.zeros(4))
        self.eval()

    def forward(self, x):
        return self.last(self.second(self.first(x - self.mean)).half())


def filled(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / 4)
    return model


def without_weights(make):
    with torch.device("meta"):
        return make()


def saved(tensors, folder, shards=SHARDS):
    """A sharded checkpoint, as the hub has them."""
    folder.mkdir(exist_ok=True)
    names = list(tensors)
    places = {name: f"model-{index % shards}.safetensors" for index, name in enumerate(names)}
    for file in set(places.values()):
        held = {name: tensors[name].detach().clone() for name in names if places[name] == file}
        save_file(held, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


@pytest.fixture
def checkpoint(tmp_path):
    return saved(filled(Net()).state_dict(), tmp_path / "checkpoint")


def test_what_is_prepared_from_shards_is_what_is_prepared_from_memory(checkpoint):
    inputs = {"x": torch.randn(2, 4)}
    expected = prepare_qdiff(filled(Net()), example_inputs=inputs)
    found = prepare_qdiff(without_weights(Net), example_inputs=inputs, weights=checkpoint)
    for (name, tensor), (_, other) in zip(found.state_dict().items(), expected.state_dict().items(), strict=True):
        assert torch.equal(tensor, other), name


@pytest.mark.slow
def test_a_network_of_half_precision_is_prepared_from_shards(tmp_path):
    network = get_network("sdxl-tiny")
    unet, inputs = network.build(False), network.inputs()
    folder = saved(unet.state_dict(), tmp_path / "unet")
    prepared = prepare_qdiff(network.build(True), example_inputs=inputs, weights=folder)
    with torch.no_grad():
        expected, found = unet(**inputs).sample, prepared(**inputs).sample
    assert found.dtype == prepared.signature.dtype == torch.float16
    assert sqnr_db(expected, found) > 50  # one computes in float16, the other in float32


@pytest.mark.slow
def test_weights_are_in_memory_once(tmp_path):
    """Those of half precision as they are: 60 layers of 4 MiB."""
    layer = {"weight": torch.randn(1448, 1448).half() / 38, "bias": torch.zeros(1448).half()}
    state = {f"{index}.{name}": tensor for index in range(60) for name, tensor in layer.items()}
    folder = saved(state, tmp_path / "checkpoint")
    done = subprocess.run([sys.executable, "-c", PREPARES, folder], capture_output=True, text=True, check=True)
    assert int(done.stdout) / 2**20 < 60 * 4 + 64


@pytest.mark.parametrize("place", [".", "model.safetensors.index.json"])
def test_a_folder_or_its_index(checkpoint, place):
    model = with_weights(without_weights(Net), checkpoint / place)
    x = torch.randn(3, 4)
    assert torch.equal(model(x), filled(Net())(x))


def test_a_single_file(tmp_path):
    save_file(without(filled(Net()).state_dict(), "second.weight"), tmp_path / "model.safetensors")
    for place in (tmp_path, tmp_path / "model.safetensors"):
        assert torch.equal(with_weights(without_weights(Net), place).mean, filled(Net()).mean)


def without(tensors, *names):
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def test_tied_weights_stay_tied_under_whichever_name_they_are_stored(tmp_path):
    state = filled(Net()).state_dict()
    for index, absent in enumerate(("first.weight", "second.weight")):
        model = with_weights(without_weights(Net), saved(without(state, absent), tmp_path / str(index)))
        assert model.first.weight is model.second.weight
        assert torch.equal(model.first.weight, state["first.weight"])


def test_the_network_is_left_as_it_is_and_decides_the_types(checkpoint):
    empty = without_weights(Net).to(torch.bfloat16)
    model = with_weights(empty, checkpoint)
    assert {each.dtype for each in model.parameters()} == {torch.bfloat16}
    assert all(each.is_meta for each in (*empty.parameters(), *empty.buffers()))
    assert torch.equal(model.mean, filled(Net()).mean.bfloat16())


def test_a_network_with_weights_of_its_own_keeps_them(checkpoint):
    own = Net()
    before = own.first.weight.clone()
    assert torch.equal(with_weights(own, checkpoint).first.weight, filled(Net()).first.weight)
    assert torch.equal(own.first.weight, before)


class TestErrorsNameFileAndTensor:
    def refused(self, weights, says, make=Net):
        with pytest.raises(ArtifactError, match=says):
            with_weights(without_weights(make), weights)

    def test_a_tensor_is_missing(self, tmp_path):
        state = filled(Net()).state_dict()
        folder = saved(without(state, "last.bias", "mean"), tmp_path / "less")
        self.refused(
            folder, "less: it lacks mean, last.bias of the network|less: it lacks last.bias, mean of the network"
        )

    def test_a_tensor_too_many(self, tmp_path):
        folder = saved(filled(Net()).state_dict() | {"third.weight": torch.ones(2)}, tmp_path / "more")
        self.refused(folder, r"model-\d.safetensors: the network has no third.weight")

    def test_a_tensor_of_another_shape(self, tmp_path):
        folder = saved(filled(Net()).state_dict() | {"last.bias": torch.ones(3)}, tmp_path / "other")
        self.refused(folder, r"model-\d.safetensors: last.bias has the shape \[3\], the network's has \[2\]")

    def test_a_shard_is_missing(self, checkpoint):
        (checkpoint / "model-1.safetensors").unlink()
        self.refused(checkpoint, "model-1.safetensors: the file is missing")

    def test_a_shard_lacks_what_the_index_says(self, checkpoint):
        (checkpoint / "model-1.safetensors").write_bytes((checkpoint / "model-0.safetensors").read_bytes())
        self.refused(checkpoint, "model-1.safetensors: it lacks .*, which model.safetensors.index.json says it holds")

    def test_a_shard_is_cut_off(self, checkpoint):
        file = checkpoint / "model-1.safetensors"
        file.write_bytes(file.read_bytes()[:-3])
        self.refused(checkpoint, "model-1.safetensors: it cannot be read")

    @pytest.mark.parametrize("text", ["no json", "[]", '{"weight_map": [1]}', '{"weight_map": {"mean": 3}}'])
    def test_an_index_that_is_none(self, checkpoint, text):
        (checkpoint / "model.safetensors.index.json").write_text(text)
        self.refused(checkpoint, "index.json: it (cannot be read|names files)")

    def test_an_index_that_leads_elsewhere(self, checkpoint):
        places = dict.fromkeys(Net().state_dict(), "../secret.safetensors")
        (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        self.refused(checkpoint, "files that do not lie beside it")

    def test_a_folder_with_none_or_several(self, tmp_path):
        self.refused(tmp_path, "expected in it, there are none")
        for name in ("a.safetensors", "b.safetensors"):
            save_file({"mean": torch.zeros(4)}, tmp_path / name)
        self.refused(tmp_path, r"there are several \(a.safetensors, b.safetensors\)")
        self.refused(tmp_path / "nowhere", "no such file or folder")

    def test_a_buffer_that_is_computed_when_the_network_is_built(self, checkpoint):
        class Computing(Net):
            def __init__(self):
                super().__init__()
                self.register_buffer("table", torch.arange(3), persistent=False)

        self.refused(checkpoint, "the network computes table when it is built", Computing)

    def test_no_weights_at_all(self):
        network = get_network("sdxl-tiny")
        with pytest.raises(CaptureError, match="on the meta device.*Say where its weights are"):
            prepare_qdiff(network.build(True), example_inputs=network.inputs())
