"""What lies between two blocks comes back bit for bit, and takes no more room than it must."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples import examples
from qdiff_fx.calibration.chunk_store import ChunkStore
from qdiff_fx.errors import CalibrationError


@examples(30)
@given(
    shape=st.lists(st.integers(0, 4), max_size=5),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.int64, torch.uint8, torch.bool]),
    exact=st.booleans(),
    room=st.sampled_from([0, 100, 10000]),
)
def test_values_of_every_kind_come_back(shape, dtype, exact, room):
    value = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3
    value = (value.half().float() if exact else value).to(dtype)
    with ChunkStore(in_memory=room) as store:
        store.write("a", 0, value)
        store.write("a", 1, value + 1 if dtype.is_floating_point else value)
        found = store.read("a", 0)
    assert found.dtype == value.dtype
    torch.testing.assert_close(found, value, rtol=0, atol=0)


@pytest.mark.parametrize("room", [0, 1000])
def test_the_order_of_channels_in_memory_is_kept(room):
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    with ChunkStore(in_memory=room) as store:
        store.write("image", 0, image)
        found = store.read("image", 0)
    assert found.stride() == image.stride()
    torch.testing.assert_close(found, image, rtol=0, atol=0)


def test_half_precision_is_stored_where_it_loses_nothing():
    with ChunkStore() as store:
        store.write("half", 0, torch.randn(100).half().float())
        assert store.peak == 200
        store.write("single", 0, torch.tensor([1e6, 1 / 3]))
        assert store.peak == 208


@pytest.mark.parametrize("room", [0, 100, 1000])
def test_dropping_gives_the_room_back(tmp_path, room):
    with ChunkStore(tmp_path, cap=800, in_memory=room) as store:
        for _ in range(3):
            store.write("a", 0, torch.rand(200))
            with pytest.raises(CalibrationError, match="cap is 800"):
                store.write("b", 0, torch.rand(1))
            store.drop("a")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said():
    with ChunkStore(in_memory=0) as store:
        (Path(store.folder) / "a").symlink_to("/dev/full")
        with pytest.raises(CalibrationError, match="the disk is full: 8 bytes"):
            store.write("a", 0, torch.tensor([1e6, 1 / 3]))


def test_files_are_written_once_memory_is_full():
    with ChunkStore(in_memory=800) as store:
        values = torch.rand(3, 2, 32).unbind()
        for chunk, value in enumerate(values):
            store.write("a", chunk, value)
        assert [file.stat().st_size for file in Path(store.folder).iterdir()] == []
        for chunk, value in enumerate(values):
            store.write("b", chunk, value)
        assert {file.name: file.stat().st_size for file in Path(store.folder).iterdir()} == {"b": 3 * 256}
        store.drop("a")
        store.write("b", 3, values[0])
        assert {file.name: file.stat().st_size for file in Path(store.folder).iterdir()} == {"b": 3 * 256}
        for chunk in range(4):
            torch.testing.assert_close(store.read("b", chunk), values[chunk % 3], rtol=0, atol=0)


def test_what_is_kept_is_not_what_was_given():
    value = torch.zeros(4)
    with ChunkStore() as store:
        store.write("a", 0, value)
        value.fill_(1 / 3)
        assert store.read("a", 0).sum() == 0
