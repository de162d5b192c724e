"""Folders that mean harm: each is refused with a sentence that names the place, and none is obeyed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import crafted_folders as crafted
import pytest
import torch
from crafted_folders import call, reads, relu, tensor, write

from qdiff_fx import load_qdiff
from qdiff_fx.errors import ArtifactError, ComputeError, QDiffError
from qdiff_fx.signature import DropIn
from qdiff_fx.storage.artifact import GRAPH, KIND, MANIFEST, WEIGHTS, load_artifact
from qdiff_fx.storage.checked_config import is_cheap
from qdiff_fx.storage.sealed import seal

X = reads("x")
BIG = 1 << 50


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        load_artifact(folder)
    for word in words:
        assert word in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_harmless_one_loads_and_runs(tmp_path):
    network = load_qdiff(write(tmp_path / "net"), "reference")
    assert torch.equal(network(**crafted.example()), torch.ones(crafted.X))


ATTACKS = """
import sys, torch
from pathlib import Path
from qdiff_fx import load_qdiff
from qdiff_fx.errors import QDiffError
for folder in sorted(Path(sys.argv[1]).iterdir()):
    for backend in ("reference", "native"):
        try:
            network = load_qdiff(folder, backend)
            network(x=torch.ones(2, 2, 4, 4), t=torch.tensor([1.0, 2.0]))
        except QDiffError:
            print(folder.name, backend, "refused")
        else:
            print(folder.name, backend, "ran")
"""


def test_no_crafted_folder_runs_code_crashes_or_hangs(tmp_path):
    """All in one process, on both backends: it has to survive them."""
    marker, folders = tmp_path / "executed", tmp_path / "folders"
    code = f"t=open({str(marker)!r}, 'w')"
    write(folders / "harmless")
    write(folders / "path", attributes={"graph_module.graph._root._next._next.target": code})
    write(folders / "class", attributes={"__class__.forward": "gone"})
    sparse = call("s", "aten._sparse_coo_tensor_unsafe.default", reads("index"), reads("value"), [16])
    stored = {"index": torch.tensor([[1 << 40]]), "value": torch.tensor([1.5])}
    dense = call("y", "aten._to_dense.default", reads("s"))
    write(folders / "sparse", [tensor("index"), tensor("value"), sparse, dense], stored)
    conv = call("y", "qdiff.int_conv.default", dilation=[(2**64 + 2) // 3, 1])
    write(folders / "wrapping", [conv])
    write(folders / "dilation", [call("y", "aten.max_pool2d.default", X, [3, 3], [1, 1], [1, 1], [2**61, 1])])
    write(folders / "expand", [call("u", "aten.sum.default", X), call("y", "aten.expand.default", reads("u"), [BIG])])
    write(folders / "zeros", [call("z", "aten.zeros.default", [1 << 40]), relu()])
    pieces = call("c", "aten.split.Tensor", reads("e"), 1)
    wide = call("e", "aten.expand.default", reads("u"), [1 << 30])
    first = call("y", "operator.getitem", reads("c"), 0)
    write(folders / "pieces", [call("u", "aten.sum.default", X), wide, pieces, first])
    rows = [call("n0", "aten.sym_size.int", X, 2)]
    rows += [call(f"n{i + 1}", "operator.mul", reads(f"n{i}"), reads(f"n{i}")) for i in range(48)]
    write(folders / "number", [*rows, relu()])
    write(folders / "power", [rows[0], call("p", "operator.pow", 10**9, reads("n0")), relu()])
    index = [tensor("index"), tensor("table"), call("y", "aten.embedding.default", reads("table"), reads("index"))]
    write(folders / "outside", index, {"index": torch.tensor([1 << 40]), "table": torch.zeros(3, 2)})
    for name, divisor in (("trap", reads("minus")), ("trapped", -1)):
        least = {"least": torch.tensor([-(2**63)]), "minus": torch.tensor([-1])}
        quotient = call("y", "aten.div.Tensor_mode", reads("least"), divisor, rounding_mode="trunc")
        write(folders / name, [tensor("least"), tensor("minus"), quotient], least)
    _second_reader_of_codes(folders / "reader")
    regex = {"pattern": "re:(a*)*b", "weight_bits": 8}
    write(folders / "regex", config=load_artifact(folders / "harmless").config.to_json() | {"rules": [regex]})
    done = subprocess.run(
        [sys.executable, "-c", ATTACKS, folders],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert not marker.exists()
    results = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    fine = {f"{name} {backend}" for name in ("harmless", "reader") for backend in ("reference", "native")}
    assert {name for name, how in results.items() if how == "ran"} == fine
    assert len(results) == 2 * len(list(folders.iterdir()))


def _second_reader_of_codes(folder: Path) -> None:
    """A call that nobody reads, which stays because it is random, reads a weight whose codes are freed once packed."""
    shutil.copytree(Path(__file__).parent / "saved_by_0_1" / "mixed", folder)
    graph = json.loads((folder / GRAPH).read_text())
    targets = [row["target"] for row in graph["nodes"]]
    index = targets.index("quantized_decomposed.dequantize_per_channel.default")
    dropout = call("extra", "aten.dropout.default", reads(graph["nodes"][index]["name"]), 0.5, True)
    graph["nodes"].insert(index + 1, dropout)
    (folder / GRAPH).write_text(json.dumps(graph))
    manifest = json.loads((folder / MANIFEST).read_text())
    seal(folder, KIND, {name: each for name, each in manifest.items() if name != "manifest_sha256"})


@pytest.mark.parametrize("path", ["__class__.forward", "training", "graph_module.x", "add_embedding", "config.a"])
def test_attributes_are_those_that_pipelines_read(tmp_path, path):
    refused(write(tmp_path / "net", attributes={path: 1}), f"'{path}' is not among what pipelines read")


@pytest.mark.parametrize("value", [None, [], {}, [1]])
def test_attributes_are_single_values(tmp_path, value):
    refused(write(tmp_path / "net", attributes={"add_embedding.linear_1.in_features": value}), "not one value")


def test_attributes_lie_in_a_namespace_of_their_own(tmp_path):
    found = load_artifact(write(tmp_path / "net", attributes={"add_embedding.linear_1.in_features": 7}))
    network = DropIn(found.graph_module, found.signature)
    assert network.add_embedding.linear_1.in_features == 7
    assert vars(network.add_embedding.linear_1) == {"in_features": 7}


@pytest.mark.parametrize(
    "row",
    [
        call("y", "aten.relu.default"),
        call("y", "aten.relu.default", X, X),
        call("y", "aten.relu.default", X, out=X),
        call("y", "aten.relu.default", None),
        call("y", "aten.relu.default", X, self=X),
        call("y", "aten.bernoulli.default", X, generator="seed"),
        call("y", "aten.to.dtype", X, {"dtype": "quint8"}),
        call("y", "aten.to.dtype", X, 6),
        call("y", "aten.zeros_like.default", X, layout={"layout": "sparse_coo"}),
        call("y", "aten.zeros_like.default", X, device={"device": "meta"}),
        call("y", "aten.clone.default", X, memory_format=1),
        call("y", "aten.softmax.int", X, 1.5),
        call("y", "aten.softmax.int", X, True),
        call("y", "aten.repeat.default", X, [1, 1, 1, 1 << 40]),
        call("y", "aten.max_pool2d.default", X, [1 << 33, 1]),
        call("y", "aten.upsample_nearest2d.vec", X, None, [{"float": "inf"}, 2.0]),
        call("y", "aten.upsample_nearest2d.vec", X, None, [1e300, 2.0]),
        call("y", "aten.slice.Tensor", X, 1 << 40, 0, 1),
        call("y", "operator.add", X, "text"),
        call("y", "operator.getitem", X, {"slice": [None, None, None]}),
    ],
)
def test_arguments_are_those_of_the_schema(tmp_path, row):
    refused(write(tmp_path / "net", [row]), "node y", row["target"])


def quantize(**changes: Any) -> dict[str, Any]:
    given = {"scale": 0.1, "zero_point": 3, "quant_min": 0, "quant_max": 255, "dtype": {"dtype": "uint8"}} | changes
    return call("y", "quantized_decomposed.quantize_per_tensor.default", X, **given)


def test_a_quantizer_with_usual_numbers_loads(tmp_path):
    assert load_artifact(write(tmp_path / "net", [quantize()])).config.weight_bits == 8


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": 0.0},
        {"scale": -1.0},
        {"scale": {"float": "nan"}},
        {"scale": {"float": "inf"}},
        {"zero_point": 256},
        {"quant_min": -1},
        {"quant_max": 256},
        {"quant_max": -1},
        {"dtype": {"dtype": "float32"}},
    ],
)
def test_quantizers_have_numbers_that_are_some(tmp_path, changes):
    refused(write(tmp_path / "net", [quantize(**changes)]), "node y")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([call("y", "aten.view.default", X, [7])], "it cannot be computed"),
        ([call("y", "aten.cat.default", [X, reads("t")])], "it cannot be computed"),
        ([call("y", "aten.relu.default", X) | {"val": ["float32", [2, 2, 4, 5]]}], "it is torch.float32 [2, 2, 4, 4]"),
        ([call("y", "aten.relu.default", X) | {"val": ["int8", [2, 2, 4, 4]]}], "the graph expects torch.int8"),
        ([call("y", "aten.zeros.default", [1 << 30])], "elements, more than"),
        ([call("z", "aten.nonzero.default", X), call("y", "aten.relu.default", reads("z"))], "node z"),
        ([call("y", "aten.relu.default", X) | {"layer": {}}], "is said of a node that is none"),
        ([call("y", "aten.relu.default", X) | {"path": "a\x1b[2Jb"}], "'a\\x1b[2Jb', not a line of text"),
        ([call("x", "aten.relu.default", X)], "'x' is there twice"),
    ],
)
def test_graphs_are_computed_before_they_are_believed(tmp_path, rows, words):
    refused(write(tmp_path / "net", rows), words)


def test_inputs_are_those_of_the_signature(tmp_path):
    changed = crafted.signature()["inputs"]
    for index, (name, value) in enumerate(
        [("dims", [["batch", 1], 3, 4, 4]), ("dims", [["batch", 3], 2, 4, 4]), ("dtype", "float16"), ("dims", [2, 2])]
    ):
        mine = [changed[0] | {name: value}, changed[1]]
        refused(write(tmp_path / str(index), inputs=mine), "node x", "its signature says")
    refused(write(tmp_path / "fewer", inputs=changed[:1]), "it takes 2 tensors, its signature says 1")
    swapped = [changed[0] | {"role": "timestep"}, changed[1] | {"role": "sample"}]
    refused(write(tmp_path / "swapped", inputs=swapped), "its signature says otherwise")
    both = {"kind": "tuple", "items": [{"kind": "tensor"}] * 2}
    refused(write(tmp_path / "output", output=both), "does not return the 2 tensors")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("parameters", None),
        ("parameters", [3]),
        ("parameters", [{"name": "x", "required": 1, "keyword_only": False, "default": None}]),
        ("parameters", [{"name": "x; y", "required": True, "keyword_only": False, "default": None}]),
        ("parameters", crafted.signature()["parameters"] * 2),
        ("parameters", [{"name": "x", "required": True, "keyword_only": False, "default": [1]}]),
        ("inputs", {}),
        ("inputs", crafted.signature()["inputs"] * 2),
        ("inputs", crafted.signature()["inputs"][1:]),
        ("inputs", [crafted.signature()["inputs"][0] | {"dims": [["batch", 0], 2, 4, 4]}]),
        ("inputs", [crafted.signature()["inputs"][0] | {"dims": [["batch", 1, 2], 2, 4, 4]}]),
        ("inputs", [crafted.signature()["inputs"][0] | {"dims": [1 << 40]}]),
        ("inputs", [crafted.signature()["inputs"][0] | {"dims": []}]),
        ("inputs", [crafted.signature()["inputs"][0] | {"dims": [-1]}]),
        ("inputs", [crafted.signature()["inputs"][0] | {"dtype": "load"}]),
        ("inputs", [crafted.signature()["inputs"][0] | {"role": "king"}]),
        ("inputs", [crafted.signature()["inputs"][0] | {"name": "x\x07"}]),
        ("inputs", [crafted.signature()["inputs"][0] | {"fixed": [[9, "why"]]}]),
        ("inputs", [crafted.signature()["inputs"][0] | {"fixed": ["why"]}]),
        ("constants", []),
        ("constants", {"scale": [1]}),
        ("output", "tensor"),
        ("output", {"kind": "class"}),
        ("output", {"kind": "constant", "value": {}}),
        ("output", {"kind": "constant", "value": 1}),
        ("output", {"kind": "list", "items": 3}),
        ("output", {"kind": "output", "class": "UNet2DOutput", "items": {"fample": {"kind": "tensor"}}}),
        ("dtype", "int8"),
        ("dtype", 3),
        ("attributes", None),
        ("batched_outputs", [1]),
        ("batched_outputs", [True, True]),
    ],
)
def test_fields_of_the_signature(tmp_path, field, value):
    refused(write(tmp_path / "net", **{field: value}))


@pytest.mark.parametrize(
    "changes",
    [
        {"weight_bits": 9},
        {"weight_bits": True},
        {"num_train_timesteps": 1e3},
        {"num_train_timesteps": 1 << 40},
        {"timestep_bins": 0},
        {"quantize_attention": "yes"},
        {"split": ["all"]},
        {"act_range": 3},
        {"rules": None},
        {"rules": [3]},
        {"rules": [{"pattern": 3}]},
        {"rules": [{"pattern": "re:("}]},
        {"rules": [{"pattern": "re:(a|a)*b"}]},
        {"rules": [{"pattern": "a", "quantize": "no"}]},
        {"rules": [{"pattern": "a", "invented": 1}]},
        {"invented": 1},
    ],
)
def test_fields_of_the_configuration(tmp_path, changes):
    usual = load_artifact(write(tmp_path / "usual")).config.to_json()
    refused(write(tmp_path / "net", config=usual | changes))


@pytest.mark.parametrize(
    ("pattern", "cheap"),
    [
        (r"(down|up)_blocks\.[0-3]\.resnets\..*conv\d", True),
        (r"mid\..*", True),
        (r"(?:a\.)+b", True),
        (r".*\.attn[12]\.to_(q|k|v)", True),
        (r"[(*]+[)|]+", True),
        (r"(a+)+b", False),
        (r"((a+))+b", False),
        (r"(a|aa)+b", False),
        (r"(a?b){2,}", False),
        (r".*.*.*.*.*x", False),
        ("(|)" * 20, False),
        ("a?" * 20, False),
    ],
)
def test_patterns_that_take_for_ever(pattern, cheap):
    assert is_cheap(pattern) is cheap


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"packed": {}', '"packed": {}, "packed": {}', "'packed' occurs twice"),
        ('"packed": {}', f'"packed": {{}}, "deep": {"[" * 100}{"]" * 100}', "nested deeper than 64"),
        ('"packed": {}', f'"packed": {{}}, "deep": {"[" * 100_000}{"]" * 100_000}', "nested deeper than 64"),
        ('"packed": {}', f'"packed": {{}}, "huge": {"9" * 5000}', "beyond 64 bits"),
        ('"packed": {}', '"packed": {}, "huge": 18446744073709551616', "beyond 64 bits"),
        ('"packed": {}', '"packed": {}, "\\ud800": 1', "nothing"),
        ('"name": "y"', '"name": "y\\ud800"', "not a line of text"),
        ('"packed": {}', '"packed": {', "it is no JSON"),
    ],
)
def test_json_that_means_harm(tmp_path, old, new, words):
    folder = write(tmp_path / "net")
    text = (folder / GRAPH).read_text()
    (folder / GRAPH).write_text(text.replace(old, new))
    manifest = json.loads((folder / MANIFEST).read_text())
    seal(folder, KIND, {name: each for name, each in manifest.items() if name != "manifest_sha256"})
    if words == "nothing":
        load_artifact(folder)
    else:
        refused(folder, words)


@pytest.mark.parametrize(
    "manifest",
    [
        {
            "config": {"weight_bits": 8, "num_train_timesteps": 9, "timestep_bins": 1, "quantize_attention": True}
            | {"rules": [], "\x1b[2J": 1}
        },
        {"rows": [call("y", "aten.to.device", X, {"device": "\x1b[2J"}, {"dtype": "float32"})]},
        {"attributes": {"\x1b[2J": 1}},
        {"source": "\x1b[2J", "dtype": "\x1b[2J"},
    ],
)
def test_a_traceback_holds_nothing_that_a_terminal_would_obey(tmp_path, manifest):
    manifest = dict(manifest)
    folder = write(tmp_path / "net", manifest.pop("rows", ()), **manifest)
    with pytest.raises(ArtifactError) as caught:
        load_artifact(folder)
    text = "".join(traceback.format_exception(caught.value))
    assert "\x1b" not in text
    assert "\\x1b[2J" in text


@pytest.mark.parametrize("name", [MANIFEST, GRAPH, WEIGHTS])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "loop"])
def test_what_is_no_file(tmp_path, name, kind):
    folder = write(tmp_path / "net")
    file = folder / name
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to("/dev/zero" if kind == "device" else file)
    refused(folder, name)


def test_links_to_files_are_followed(tmp_path):
    """So lie the folders of a download cache."""
    folder = write(tmp_path / "net")
    for name in (MANIFEST, GRAPH, WEIGHTS):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
    load_artifact(folder)


@pytest.mark.parametrize("name", ["forward", "training", "__class__", "a..b", "", "a." * 100 + "b", "é'", "_modules"])
def test_names_of_tensors(tmp_path, name):
    refused(write(tmp_path / "net", tensors={name: torch.zeros(1)}))


def test_one_name_within_another(tmp_path):
    refused(write(tmp_path / "net", tensors={"a": torch.zeros(1), "a.b": torch.zeros(1)}))


@pytest.mark.parametrize(
    ("packed", "bits"),
    [
        ({"w": [4, [8]]}, None),
        ({"w": [4, [8]]}, 3),
        ({"w": [4, [9]]}, 4),
        ({"w": [4, [-8]]}, 4),
        ({"w": [4, [1 << 40, 1 << 40]]}, 4),
        ({"w": [4]}, 4),
        ({"w": 4}, 4),
        ({"v": [4, [8]]}, 4),
        ({}, 4),
    ],
)
def test_packed_codes(tmp_path, packed, bits):
    row = tensor("w") | ({} if bits is None else {"weight_bits": bits})
    for keep in (False, True):
        folder = write(tmp_path / f"net{keep}", [row, relu()], {"w": torch.zeros(4, dtype=torch.uint8)}, packed=packed)
        with pytest.raises(ArtifactError):
            load_artifact(folder, keep_packed=keep)


@pytest.mark.parametrize(
    "header", [b"\xff" * 7 + b"\x7f", (1 << 40).to_bytes(8, "little"), b"", b"\2\0\0\0\0\0\0\0{}x"]
)
def test_headers_of_tensors(tmp_path, header):
    folder = write(tmp_path / "net")
    (folder / WEIGHTS).write_bytes(header)
    manifest = json.loads((folder / MANIFEST).read_text())
    seal(folder, KIND, {name: each for name, each in manifest.items() if name != "manifest_sha256"})
    refused(folder)


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_a_call_that_fails_says_so(tmp_path, backend):
    """What lies in tables is data, and torch looks where it leads when it is called."""
    rows = [tensor("i"), tensor("w"), call("y", "aten.index_select.default", reads("w"), 0, reads("i"))]
    folder = write(tmp_path / "net", rows, {"i": torch.tensor([9]), "w": torch.zeros(3, 2)})
    network = load_qdiff(folder, backend)
    with pytest.raises(ComputeError, match="the network failed .*out of range") as caught:
        network(**crafted.example())
    assert isinstance(caught.value, QDiffError)
    assert isinstance(caught.value, RuntimeError)
