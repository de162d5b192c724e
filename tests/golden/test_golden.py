"""The recorder notices every change it is there for, and one recorded case still gives the same."""

import pytest
import torch
from safetensors.torch import save_file

from golden import records
from golden.cases import CASES, select
from golden.digests import folder_digests, in_order, tensor_digest
from golden.measure import measure
from golden.processor import this_processor

X = torch.arange(6, dtype=torch.int8).reshape(2, 3)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stored(folder, tensors, file="weights.safetensors"):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / file)
    return folder_digests(folder)


@pytest.mark.parametrize("other", [X + 1, X.int(), X.reshape(3, 2), X.view(torch.uint8), X.T.contiguous()])
def test_a_tensor_is_its_type_its_shape_and_its_bytes(other):
    assert tensor_digest(other) != tensor_digest(X)


def test_how_a_tensor_lies_in_memory_does_not_matter():
    assert tensor_digest(X.T) == tensor_digest(X.T.contiguous())
    assert tensor_digest(torch.tensor(0.5)) != tensor_digest(torch.tensor([0.5]))


def test_names_and_files_do_not_matter(tmp_path):
    first = stored(tmp_path / "one", {"a": X, "b": X + 1})
    stored(tmp_path / "two", {"renamed": X + 1}, "x.safetensors")
    assert stored(tmp_path / "two", {"c": X}, "y.safetensors") == first


def test_a_changed_tensor_is_noticed(tmp_path):
    first, second = stored(tmp_path / "one", {"a": X}), stored(tmp_path / "two", {"a": X + 1})
    assert [line.split(": ")[1] for line in records.differences("case", first, second)] == [
        "tensors distinct",
        "tensors stored",
    ]


def test_storing_a_tensor_once_instead_of_twice_changes_one_digest(tmp_path):
    twice, once = stored(tmp_path / "one", {"a": X, "b": X.clone()}), stored(tmp_path / "two", {"a": X})
    assert twice["tensors distinct"] == once["tensors distinct"]
    assert twice["tensors stored"] != once["tensors stored"]


def test_a_folder_without_tensors_is_no_result(tmp_path):
    with pytest.raises(ValueError, match="stores no tensors"):
        folder_digests(tmp_path)


def test_the_last_bit_of_an_output_is_noticed():
    y = torch.linspace(0, 1, 7)
    z = y.clone()
    z[3] = torch.nextafter(z[3], torch.tensor(2.0))
    (line,) = records.differences("digits", {"native: t=5": in_order([y])}, {"native: t=5": in_order([z])})
    assert line.startswith("digits: native: t=5: ")


def test_what_is_gone_and_what_is_new_are_differences():
    assert records.differences("case", {"a": "1"}, {"b": "1"}) == [
        "case: a: is recorded, but was not computed",
        "case: b: is not in the record",
    ]


def test_recording_some_cases_keeps_the_others(tmp_path):
    processor, file = this_processor(), tmp_path / "record.json"
    records.write(file, processor, {"one": {"a": "1"}, "two": {"a": "2"}})
    records.write(file, processor, {"two": {"a": "3"}})
    assert records.read(file) == {"one": {"a": "1"}, "two": {"a": "3"}}


def test_cases_are_found_by_parts_of_their_names():
    assert [case.name for case in select(["sdxl", "digits-w"])] == ["digits-w8a8", "digits-w4a8", "random-sdxl"]
    assert select([]) == list(CASES)
    with pytest.raises(ValueError, match="no case is called 'nothing'"):
        select(["nothing"])


@pytest.mark.parametrize("name", ["random-handwritten_attention", pytest.param("digits-w8a8", marks=pytest.mark.slow)])
def test_results_are_what_is_recorded(one_thread, name):
    processor = this_processor()
    file = records.record_file(processor)
    if not file.is_file():
        pytest.skip(f"no results are recorded for {processor.key}")
    (case,) = select([name])
    assert records.differences(case.name, records.read(file)[case.name], measure(case)) == []
