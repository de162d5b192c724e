"""Which instruction sets a processor is taken to have."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from qdiff_fx.errors import KernelError
from qdiff_fx.kernels.build import kernels_of
from qdiff_fx.kernels.isa import ISAS, choose_isa, supported_isas


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    supported_isas.cache_clear()
    yield
    supported_isas.cache_clear()


def without_capabilities(monkeypatch: pytest.MonkeyPatch, avx2: bool, vnni: bool) -> None:
    """torch as it was before it could tell everything."""
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx2_supported", lambda: avx2)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)


def test_all_that_is_needed_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = dict.fromkeys((need for isa in ISAS if "neon" not in isa.needs for need in isa.needs), True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: everything | {"f16c": False}, raising=False)
    assert supported_isas() == ("avx512_vnni", "portable")  # the others convert half precision
    assert choose_isa().name == "avx512_vnni"
    assert choose_isa("portable").name == "portable"
    with pytest.raises(KernelError, match="avx2: this processor does not have it"):
        choose_isa("avx2")


@pytest.mark.parametrize(
    ("avx2", "vnni", "expected"),
    [
        (True, True, ("avx512_vnni", "avx_vnni_evex", "avx2", "portable")),
        (True, False, ("avx2", "portable")),
        (False, False, ("portable",)),
    ],
)
def test_older_releases_of_torch(
    monkeypatch: pytest.MonkeyPatch, avx2: bool, vnni: bool, expected: tuple[str, ...]
) -> None:
    without_capabilities(monkeypatch, avx2, vnni)
    assert supported_isas() == expected


def test_dot_products_in_either_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alder Lake has one, Ice Lake and Zen 4 the other."""
    plain = dict.fromkeys(("avx2", "fma3", "f16c"), True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: plain | {"avx_vnni": True}, raising=False)
    assert supported_isas() == ("avx_vnni", "avx2", "portable")
    supported_isas.cache_clear()
    other = {"avx512_vl": True, "avx512_vnni": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: plain | other, raising=False)
    assert supported_isas() == ("avx_vnni_evex", "avx2", "portable")


NEON, DOT, I8MM = 1 << 1, 1 << 20, 1 << 13


def on_arm(monkeypatch: pytest.MonkeyPatch, library: object) -> None:
    """A processor about which this library of C answers."""
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({16: NEON | DOT, 26: I8MM}, ("neon_i8mm", "neon_dotprod", "neon", "portable")),
        ({16: NEON | DOT, 26: 0}, ("neon_dotprod", "neon", "portable")),
        ({16: NEON, 26: ~I8MM & 0xFFFF}, ("neon", "portable")),
        ({16: NEON, 26: I8MM}, ("neon", "portable")),  # no dot products: there is no such processor, and no kernel
    ],
)
def test_arm_as_linux_tells_it(
    monkeypatch: pytest.MonkeyPatch, words: dict[int, int], expected: tuple[str, ...]
) -> None:
    on_arm(monkeypatch, SimpleNamespace(getauxval=lambda kind: words[kind]))
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert supported_isas() == expected
    assert kernels_of(choose_isa()).flags[0].startswith("-march=armv8")


def test_arm_as_torch_tells_it_where_the_system_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    on_arm(monkeypatch, SimpleNamespace())
    told = {"neon": True, "dot": True, "i8mm": False, "architecture": "ARM64"}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    assert supported_isas() == ("neon_dotprod", "neon", "portable")


def test_an_unknown_name_lists_the_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    with pytest.raises(KernelError, match="no such kernels.*portable"):
        choose_isa("avx1024")
