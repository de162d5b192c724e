"""Saved folders: the same network comes back, damage never goes unnoticed, and saving is all or nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny_graphs import reference_for
from torch import nn

from examples import examples
from qdiff_fx import (
    QDiffConfig,
    QuantizedUNet,
    Rule,
    calibrate,
    convert_qdiff,
    load_qdiff,
    prepare_qdiff,
    save_prepared,
    save_qdiff,
)
from qdiff_fx.backends.inductor.backend import InductorOptions
from qdiff_fx.errors import ArtifactError
from qdiff_fx.quant.numerics import sqnr_db
from qdiff_fx.storage import artifact as module
from qdiff_fx.storage import sealed
from qdiff_fx.storage.artifact import GRAPH, MANIFEST, WEIGHTS, artifact_bytes, load_artifact

FILES = (MANIFEST, GRAPH, WEIGHTS)


class Small(nn.Module):
    """A shortcut, an attention and a timestep, in as few layers as that takes."""

    def __init__(self, channels: int = 8, kernel: int = 3, attention: bool = True, bias: bool = True):
        super().__init__()
        self.first = nn.Conv2d(2, channels, kernel, padding="same", bias=bias)
        self.time = nn.Linear(1, channels)
        self.qkv = nn.Linear(channels, 3 * channels, bias=bias) if attention else None
        self.last = nn.Conv2d(2 * channels, 2, 1, bias=bias)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        skip = self.first(x)
        h = F.silu(skip + self.time(t[:, None].float() / 1000)[..., None, None])
        if self.qkv is not None:
            q, k, v = self.qkv(h.flatten(2).transpose(1, 2)).chunk(3, dim=-1)
            mixed = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
            h = h + mixed.transpose(1, 2).reshape(h.shape)
        return self.last(torch.cat([h, skip], dim=1))


def example() -> dict[str, torch.Tensor]:
    return {"x": torch.randn(2, 2, 4, 4), "t": torch.tensor([3.0, 700.0])}


def quantize(net: nn.Module, config: QDiffConfig, **options: Any) -> QuantizedUNet:
    inputs = example()
    prepared = prepare_qdiff(net.eval(), config, inputs, output_quantizers=True)
    calibrate(prepared, [inputs], progress=False)
    return convert_qdiff(prepared, backend="reference", **options)


@pytest.fixture(scope="module")
def network() -> QuantizedUNet:
    torch.manual_seed(0)
    return quantize(Small(), QDiffConfig(weight_bits=4), source="somewhere/model.py")


@pytest.fixture(scope="module")
def older() -> QuantizedUNet:
    torch.manual_seed(0)
    return quantize(Small(channels=3), QDiffConfig())


@pytest.fixture
def folder(network: QuantizedUNet, tmp_path: Path) -> Path:
    return save_qdiff(network, tmp_path / "saved")


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def loaded(folder: Path) -> QuantizedUNet:
    return load_qdiff(folder, backend="reference")


class TestRoundTrip:
    @examples(8, suppress_health_check=[HealthCheck.too_slow])
    @given(
        channels=st.sampled_from([3, 8]),
        kernel=st.sampled_from([1, 3]),
        attention=st.booleans(),
        bias=st.booleans(),
        weight_bits=st.integers(2, 8),
        act_bits=st.integers(4, 8),
        granularity=st.sampled_from(["timestep", "tensor"]),
        split=st.sampled_from(["shortcut", "off"]),
    )
    def test_the_same_network_comes_back(
        self, tmp_path_factory, channels, kernel, attention, bias, weight_bits, act_bits, granularity, split
    ):
        config = QDiffConfig(
            weight_bits=weight_bits,
            act_bits=act_bits,
            act_granularity=granularity,
            split=split,
            timestep_bins=4,
            rules=(Rule("last", weight_bits=2),),
        )
        network = quantize(Small(channels, kernel, attention, bias), config, source="here")
        again = loaded(save_qdiff(network, tmp_path_factory.mktemp("round") / "trip"))
        for batch in (example(), {"x": torch.randn(3, 2, 6, 4), "t": 500}):
            assert torch.equal(again(**batch), network(**batch))
        assert again.explain() == network.explain()
        assert (again.qconfig, again.source, again.signature) == (config, "here", network.signature)

    @pytest.mark.parametrize("name", ["one_resolution", "handwritten_sum"])
    def test_networks_of_the_zoo(self, name, tmp_path):
        network, inputs = zoo.quantized(name), zoo.captured(name)[1]
        again = loaded(save_qdiff(network, tmp_path / "saved"))
        assert type(again(**inputs)) is type(network(**inputs))
        assert torch.equal(zoo.tensors_of(again(**inputs))[0], zoo.tensors_of(network(**inputs))[0])
        assert dict(again.config) == json.loads(json.dumps(dict(network.config)))
        assert again.dtype == network.dtype

    def test_saving_what_was_loaded_writes_the_same_files(self, folder, tmp_path):
        assert content(save_qdiff(loaded(folder), tmp_path / "twice")) == content(folder)

    def test_saved_on_one_backend_loaded_on_another(self, network, tmp_path):
        inputs = example()
        lowered = network.with_backend("inductor", compile=False)
        saved = save_qdiff(lowered, tmp_path / "saved")
        assert torch.equal(loaded(saved)(**inputs), network(**inputs))
        for backend, options in (("inductor", {"compile": False}), ("x86", {}), ("qnnpack", {})):
            if backend == "inductor" or backend in torch.backends.quantized.supported_engines:
                again = load_qdiff(saved, backend=backend, **options)
                assert again.backend == backend
                expected = network.with_backend("reference", reference_for(backend))(**inputs)
                # torch.ao quantizes layer outputs too, with one scale over all timesteps.
                assert sqnr_db(expected, again(**inputs)) > (60 if backend == "inductor" else 10)

    def test_options_of_loading_reach_the_backend(self, folder):
        options = InductorOptions(compile=False, compute_dtype=torch.bfloat16)
        again = load_qdiff(folder, "inductor", compute_dtype=torch.bfloat16, compile=False)
        assert again.options == options

    def test_an_artifact_is_replaced(self, older, folder):
        save_qdiff(older, folder)
        assert loaded(folder).qconfig == older.qconfig
        assert [path.name for path in folder.parent.iterdir()] == ["saved"]

    def test_relative_folders_and_missing_parents(self, network, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert save_qdiff(network, "a/b/saved") == Path("a/b/saved")
        assert loaded(Path("a/b/saved")).source == "somewhere/model.py"


class TestTheFolder:
    def test_holds_json_and_safetensors_only(self, folder):
        assert {file.name for file in folder.iterdir()} == set(FILES)
        assert {file.suffix for file in folder.iterdir()} == {".json", ".safetensors"}

    def test_holds_no_float_weights(self, folder, network):
        tensors = load_file(folder / WEIGHTS)
        weights = [name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.dim() > 1]
        assert weights == []

    @pytest.mark.parametrize("bits", [2, 3, 4, 6])
    def test_low_bits_are_packed(self, bits, tmp_path):
        wide = nn.Sequential(nn.Conv2d(64, 64, 3), nn.Conv2d(64, 64, 3)).eval()
        inputs = {"input": torch.randn(1, 64, 5, 5)}
        sizes = {}
        for width in (8, bits):
            prepared = prepare_qdiff(
                wide, QDiffConfig(weight_bits=width, weight_range="max", edge_weight_bits=2, sample_act_bits=8), inputs
            )
            calibrate(prepared, [inputs], progress=False)
            sizes[width] = artifact_bytes(save_qdiff(convert_qdiff(prepared, "reference"), tmp_path / str(width)))
        assert sizes[bits] / sizes[8] == pytest.approx(bits / 8, abs=0.06)

    @pytest.mark.parametrize("name", ["one_resolution"])
    def test_loads_where_neither_the_class_nor_pickle_exists(self, name, tmp_path):
        """In a process of its own, where building the original network raises, and so does pickle."""
        network, inputs = zoo.quantized(name), zoo.captured(name)[1]
        save_qdiff(network, tmp_path / "saved")
        flat = dict(zip("abc", network.flatten_inputs((), inputs), strict=True))
        save_file(flat | {"expected": network(**inputs).sample.contiguous()}, tmp_path / "call.safetensors")
        program = """
import pickle
import diffusers
from safetensors.torch import load_file
from qdiff_fx import load_qdiff
import torch
def refuse(*args, **kwargs): raise AssertionError("unpickled something, or built the original network")
pickle.load = pickle.loads = pickle.Unpickler = torch.load = refuse
diffusers.UNet2DModel.__init__ = refuse
net, call = load_qdiff("saved", backend="reference"), load_file("call.safetensors")
(result,) = net(call["a"], call["b"], class_labels=call["c"], return_dict=False)
assert torch.equal(result, call["expected"])
"""
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)

    @pytest.mark.parametrize("name", ["one_resolution"])
    def test_runs_where_kernels_cannot_be_compiled(self, name, tmp_path):
        """Loading frees the weights it has packed: plain torch, which packs nothing, must have kept its own."""
        network, inputs = zoo.quantized(name), zoo.captured(name)[1]
        save_qdiff(network, tmp_path / "saved")
        flat = dict(zip("abc", network.flatten_inputs((), inputs), strict=True))
        save_file(flat | {"expected": network(**inputs).sample.contiguous()}, tmp_path / "call.safetensors")
        program = """
from safetensors.torch import load_file
from qdiff_fx import load_qdiff
from qdiff_fx.quant.numerics import sqnr_db
net, call = load_qdiff("saved", backend="native"), load_file("call.safetensors")
(result,) = net(call["a"], call["b"], class_labels=call["c"], return_dict=False)
assert sqnr_db(call["expected"], result) > 28  # compiled kernels: 31.6
"""
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "QDIFF_KERNELS": "reference"}
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)


class TestDamage:
    """Any change to any file is noticed."""

    @pytest.fixture(scope="class")
    def saved(self, network, tmp_path_factory) -> Path:
        return save_qdiff(network, tmp_path_factory.mktemp("damage") / "saved")

    @examples(150)
    @given(data=st.data())
    def test_one_byte(self, saved, data):
        file = saved / data.draw(st.sampled_from(FILES))
        original = file.read_bytes()
        position = data.draw(st.integers(0, len(original) - 1))
        change = data.draw(st.sampled_from([1 << bit for bit in range(8)]) | st.integers(1, 255))
        damaged = bytearray(original)
        damaged[position] ^= change
        with self._replaced(file, bytes(damaged)), pytest.raises(ArtifactError):
            load_artifact(saved)

    @examples(40)
    @given(data=st.data())
    def test_the_end(self, saved, data):
        """Cut off at any length, or with something appended."""
        file = saved / data.draw(st.sampled_from(FILES))
        original = file.read_bytes()
        cut = original[: data.draw(st.integers(0, len(original) - 1))]
        for damaged in (cut, original + data.draw(st.sampled_from([b"\0", b" ", b"\n", original]))):
            with self._replaced(file, damaged), pytest.raises(ArtifactError):
                load_artifact(saved)

    def test_undamaged_it_loads(self, saved):
        assert load_artifact(saved).source == "somewhere/model.py"

    @staticmethod
    def _replaced(file: Path, text: bytes) -> Any:
        class Replaced:
            def __enter__(self) -> None:
                self.original = file.read_bytes()
                file.write_bytes(text)

            def __exit__(self, *exception: object) -> None:
                file.write_bytes(self.original)

        return Replaced()


class TestWhatIsNotANetwork:
    def test_no_folder(self, tmp_path):
        with pytest.raises(ArtifactError, match=r"nowhere: the folder does not exist. Give a folder written by save"):
            load_qdiff(tmp_path / "nowhere")

    def test_another_folder(self, tmp_path):
        with pytest.raises(ArtifactError, match="is not a saved network: it has no qdiff.json"):
            load_qdiff(tmp_path)

    def test_a_file(self, folder):
        with pytest.raises(ArtifactError, match="does not exist"):
            load_qdiff(folder / MANIFEST)

    @pytest.mark.parametrize("name", [GRAPH, WEIGHTS])
    def test_a_missing_file(self, folder, name):
        (folder / name).unlink()
        with pytest.raises(ArtifactError, match=f"{name} is missing. Save the network again"):
            load_qdiff(folder)

    @pytest.mark.parametrize("version", [2, 99])
    def test_a_newer_version(self, folder, version):
        reseal(folder, format_version=version)
        with pytest.raises(ArtifactError, match=f"format version {version}, this release reads up to 1. Upgrade"):
            load_qdiff(folder)

    @pytest.mark.parametrize("version", ["1", None, [1]])
    def test_a_version_that_is_none(self, folder, version):
        reseal(folder, format_version=version)
        with pytest.raises(ArtifactError, match="format_version is .*, not a whole number"):
            load_qdiff(folder)

    @pytest.mark.parametrize("key", ["format_version", "config", "signature", "source", "sha256", "manifest_sha256"])
    def test_an_incomplete_manifest(self, folder, key):
        manifest = json.loads((folder / MANIFEST).read_text())
        del manifest[key]
        if key != "manifest_sha256":
            manifest["manifest_sha256"] = sealed.manifest_digest(manifest)
        (folder / MANIFEST).write_text(sealed.manifest_text(manifest))
        with pytest.raises(ArtifactError, match=f"it has no '{key}'"):
            load_qdiff(folder)


def reseal(folder: Path, **changes: Any) -> None:
    """Make the checksums right again after a change, as somebody who means harm would."""
    manifest = json.loads((folder / MANIFEST).read_text()) | changes
    manifest["sha256"] = {name: sealed.file_digest(folder / name) for name in (GRAPH, WEIGHTS)}
    manifest["manifest_sha256"] = sealed.manifest_digest(manifest)
    (folder / MANIFEST).write_text(sealed.manifest_text(manifest))


class TestWhatMeansHarm:
    """The checksums are right, the content is not."""

    def edit(self, folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
        graph = json.loads((folder / GRAPH).read_text())
        change(graph)
        (folder / GRAPH).write_text(json.dumps(graph))
        reseal(folder)

    def test_resealed_but_unchanged_it_loads(self, folder, network):
        self.edit(folder, lambda graph: None)
        inputs = example()
        assert torch.equal(loaded(folder)(**inputs), network(**inputs))

    @pytest.mark.parametrize("target", ["os.system", "onednn.qlinear_prepack.default", "aten.save.default"])
    def test_other_operators(self, folder, target):
        self.edit(folder, lambda graph: graph["nodes"][-2].update(target=target))
        with pytest.raises(ArtifactError, match=f"'{target}' is not an operator that may be loaded"):
            load_qdiff(folder)

    def test_code_in_a_name_does_not_run(self, folder, tmp_path):
        proof = tmp_path / "proof"
        self.edit(folder, lambda graph: graph["nodes"][0].update(target=f"x=open({str(proof)!r}, 'w')"))
        with pytest.raises(ArtifactError, match="is not a name"):
            load_qdiff(folder)
        assert not proof.exists()

    def test_a_tensor_that_is_not_there(self, folder):
        node = {"name": "ghost", "op": "get_attr", "target": "ghost.weight", "args": []}
        self.edit(folder, lambda graph: graph["nodes"].insert(0, node))
        with pytest.raises(ArtifactError, match=r"tensor 'ghost.weight' is missing"):
            load_qdiff(folder)

    @pytest.mark.parametrize("packing", [[4, [1, 2, 3]], [9, [8]], ["4", [8]], None, [4, [-8, -2]]])
    def test_codes_that_do_not_fit_their_shape(self, folder, packing):
        self.edit(folder, lambda graph: graph["packed"].update(dict.fromkeys(graph["packed"], packing)))
        with pytest.raises(ArtifactError):
            load_qdiff(folder)

    @pytest.mark.parametrize("graph", [None, [], {}, {"nodes": []}, {"nodes": None, "packed": {}}])
    def test_graphs_that_are_none(self, folder, graph):
        (folder / GRAPH).write_text(json.dumps(graph))
        reseal(folder)
        with pytest.raises(ArtifactError):
            load_qdiff(folder)

    def test_weights_that_are_none(self, folder):
        (folder / WEIGHTS).write_bytes(b"not safetensors")
        reseal(folder)
        with pytest.raises(ArtifactError, match="cannot be read"):
            load_qdiff(folder)


@pytest.fixture(params=["new", "replacing"])
def target(request, older, tmp_path) -> Iterator[Path]:
    """A folder to save to; whatever fails, its parent must look afterwards as it did before."""
    parent = tmp_path / "parent"
    parent.mkdir()
    target = parent / "saved"
    if request.param == "replacing":
        save_qdiff(older, target)
    before = {path.name: content(path) for path in parent.iterdir()}
    yield target
    assert {path.name: content(path) for path in parent.iterdir()} == before
    if before:
        assert loaded(target).qconfig == QDiffConfig()


class TestSavingFails:
    """Then nothing half-written stays, and what was there before is intact."""

    @pytest.mark.parametrize(
        "error",
        [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device (28)")],
        ids=["os", "safetensors"],
    )
    def test_the_disk_is_full_at_the_weights(self, network, target, monkeypatch, error):
        def half(tensors: object, path: Path, **_: object) -> None:
            path.write_bytes(b"half")
            raise error

        monkeypatch.setattr(module, "save_file", half)
        with pytest.raises(ArtifactError, match=r"the disk is full.*Free space or choose another disk"):
            save_qdiff(network, target)

    @pytest.mark.parametrize("name", [GRAPH, MANIFEST])
    def test_the_disk_is_full_at_a_text(self, network, target, monkeypatch, name):
        write = Path.write_text

        def half(path: Path, text: str) -> int:
            if path.name != name:
                return write(path, text)
            write(path, text[:10])
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "write_text", half)
        with pytest.raises(ArtifactError, match="the disk is full"):
            save_qdiff(network, target)

    def test_too_little_space_is_seen_before_writing(self, network, target, monkeypatch):
        usage = type(shutil.disk_usage("/"))(10**9, 10**9 - 5, 5)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        monkeypatch.setattr(module, "save_file", lambda *_, **__: pytest.fail("it wrote"))
        with pytest.raises(ArtifactError, match=r"the disk is full \(\d+ bytes are needed and 5 are free\)"):
            save_qdiff(network, target)

    def test_another_error_of_the_system(self, network, target, monkeypatch):
        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(module, "save_file", refuse)
        with pytest.raises(ArtifactError, match="it cannot be written .*Permission denied"):
            save_qdiff(network, target)

    def test_interrupted_while_writing(self, network, target, monkeypatch):
        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(module, "save_file", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save_qdiff(network, target)


class TestNothingIsOverwritten:
    def test_another_folder(self, network, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(ArtifactError, match="it exists and is not a saved network. Choose another folder"):
            save_qdiff(network, tmp_path)
        assert content(tmp_path) == {"notes.txt": b"mine"}

    def test_a_file(self, network, tmp_path):
        file = tmp_path / "saved"
        file.write_text("mine")
        with pytest.raises(ArtifactError, match="it exists and is not a saved network"):
            save_qdiff(network, file)
        assert file.read_text() == "mine"

    def test_an_artifact_with_something_beside_it(self, network, folder):
        (folder / "notes.txt").write_text("mine")
        with pytest.raises(ArtifactError, match="it holds 'notes.txt' beside a saved network"):
            save_qdiff(network, folder)
        assert (folder / "notes.txt").read_text() == "mine"
        assert loaded(folder).source == "somewhere/model.py"

    def test_below_a_file(self, network, tmp_path):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(ArtifactError, match="it cannot be written"):
            save_qdiff(network, tmp_path / "file" / "saved")


class AllOfAVideo(nn.Module):
    """Attention over every pixel of sizes that are multiples of 4: captured with more than 200 000 of them."""

    def __init__(self) -> None:
        super().__init__()
        self.coarse, self.fine = nn.Conv3d(2, 4, 4, stride=4), nn.ConvTranspose3d(4, 4, 4, stride=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.fine(self.coarse(x))
        tokens = h.flatten(2)
        return (tokens @ torch.softmax(tokens.transpose(1, 2) @ tokens, -1)).view(h.shape)


def test_attention_over_all_of_a_video_is_saved(tmp_path: Path) -> None:
    batch = {"x": torch.randn(2, 2, 4, 4, 4)}
    prepared = prepare_qdiff(AllOfAVideo().eval(), QDiffConfig(), batch)
    calibrate(prepared, [batch], progress=False)
    quantized = convert_qdiff(prepared, "reference")
    assert torch.equal(load_qdiff(save_qdiff(quantized, tmp_path / "net"), "reference")(**batch), quantized(**batch))


class Dividing(nn.Module):
    """Labels divided as processors divide: the smallest number by -1 stops the process, so no folder may ask for it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.register_buffer("by", torch.tensor([2]))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.conv(x) + torch.div(labels, self.by, rounding_mode="trunc")[:, None, None, None]


@pytest.mark.parametrize(
    ("config", "net", "named"),
    [
        (QDiffConfig(), Dividing(), "node div"),
        (QDiffConfig(rules=(Rule("re:(conv|2d)+", quantize=True),)), nn.Conv2d(2, 2, 1), "config.rules"),
    ],
)
def test_what_would_not_load_is_not_saved(config: QDiffConfig, net: nn.Module, named: str, tmp_path: Path) -> None:
    """Both prepared and quantized; what had the name before stays."""
    inputs = {"x": torch.randn(2, 2, 4, 4), "labels": torch.tensor([3, 4])}
    batch = inputs if isinstance(net, Dividing) else {"input": inputs["x"]}
    prepared = prepare_qdiff(net.eval(), config, batch)
    calibrate(prepared, [batch], progress=False)
    for save, each in ((save_prepared, prepared), (save_qdiff, convert_qdiff(prepared, "reference"))):
        with pytest.raises(ArtifactError, match="would not load again") as error:
            save(each, tmp_path / "net")
        assert named in str(error.value)
        assert not list(tmp_path.iterdir())
