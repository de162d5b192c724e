"""The cache: rows come back as they went in, files go, a full disk is said."""

import errno
import os

import pytest
import torch

from qdiff_fx.errors import CalibrationError
from qdiff_fx.reconstruction.cache import ActivationCache


def test_rows_come_back(tmp_path):
    values = torch.randn(4, 3, 2)
    with ActivationCache(4, tmp_path) as cache:
        cache.write("x", slice(0, 2), values[:2])
        cache.write("x", slice(2, 4), values[2:])
        torch.testing.assert_close(cache.read("x", torch.tensor([3, 0])), values[[3, 0]], rtol=1e-3, atol=1e-3)
        assert list(tmp_path.rglob("x.half"))
        cache.drop("x")
        assert "x" not in cache
        assert not list(tmp_path.rglob("x.half"))
    assert not list(tmp_path.iterdir())


def test_images_come_back_channels_last(tmp_path):
    images = torch.randn(3, 5, 2, 4)
    with ActivationCache(3, tmp_path) as cache:
        cache.write("x", slice(0, 3), images)
        found = cache.read("x", torch.tensor([2, 1]))
        torch.testing.assert_close(found, images[[2, 1]], rtol=1e-3, atol=1e-3)
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_bfloat16_is_read_as_it_was_kept(tmp_path):
    values = torch.randn(2, 3)
    with ActivationCache(2, tmp_path) as cache:
        cache.write("x", slice(0, 2), values, torch.bfloat16)
        cache.write("y", slice(0, 2), values)
        assert torch.equal(cache.read("x", slice(0, 2)), values.bfloat16())
        assert cache.bytes == 2 * 2 * values.numel()


def test_several_rows_of_one_sample_stay_together(tmp_path):
    heads = torch.randn(4, 3)  # two rows for each of two samples
    with ActivationCache(2, tmp_path) as cache:
        cache.write("x", slice(0, 2), heads)
        torch.testing.assert_close(cache.read("x", torch.tensor([1])), heads[2:], rtol=1e-3, atol=1e-3)


def test_inputs_keep_their_dtype(tmp_path):
    with ActivationCache(3, tmp_path) as cache:
        cache.put("t", torch.tensor([1, 2, 3]))
        assert torch.equal(cache.read("t", torch.tensor([2])), torch.tensor([3]))


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with ActivationCache(2, tmp_path) as cache, pytest.raises(CalibrationError, match="the disk is full.*x"):
        cache.write("x", slice(0, 2), torch.ones(2, 5))
    assert not list(tmp_path.iterdir())


def test_what_half_precision_cannot_hold_is_refused(tmp_path):
    with ActivationCache(1, tmp_path) as cache, pytest.raises(CalibrationError, match="not finite"):
        cache.write("x", slice(0, 1), torch.full((1, 2), 1e6))
