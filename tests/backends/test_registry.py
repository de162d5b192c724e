"""Backends by name: found when asked for, each with its own options."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from qdiff_fx.backends import Backend, Lowered, backend_names, get_backend, register, registry
from qdiff_fx.backends.common.options import choose_options, known_options
from qdiff_fx.backends.inductor.backend import InductorOptions
from qdiff_fx.backends.native.backend import NativeOptions
from qdiff_fx.errors import BackendError, ConfigError


class Nothing(Backend):
    """A backend as a newcomer writes it."""

    name = "nothing"

    def supports(self, layer: fx.Node) -> str:
        return "it does nothing"

    def lower(self, gm: fx.GraphModule, options: object = None, *, release: bool = False) -> Lowered:
        return Lowered(gm, ())


PLACE = f"{Nothing.__module__}:Nothing"


@pytest.fixture
def places(monkeypatch):
    """The registry, put back afterwards."""
    monkeypatch.setattr(registry, "_PLACES", dict(registry._PLACES))


def test_every_backend_is_a_class_by_its_own_name():
    for name in backend_names():
        assert registry._load(name, registry._PLACES[name]).name == name


def test_a_registered_backend_is_found(places):
    register("nothing", PLACE)
    assert isinstance(get_backend("nothing"), Nothing)
    assert backend_names()[-1] == "nothing"
    register("nothing", PLACE)  # as a module does that is imported twice


def test_an_unknown_backend_lists_those_there_are():
    with pytest.raises(BackendError, match="there is no such backend.*reference, native, inductor, x86, qnnpack"):
        get_backend("abacus")


def test_a_name_is_not_taken_over(places):
    with pytest.raises(BackendError, match="taken by qdiff_fx.backends.native"):
        register("native", PLACE)


def test_a_place_names_module_and_class(places):
    with pytest.raises(BackendError, match="module.path:Class"):
        register("nothing", "some.module")


@pytest.mark.parametrize("place", ["no_such_module:Nothing", f"{Nothing.__module__}:NoSuchClass"])
def test_a_place_that_is_not_there_is_told(places, place):
    register("nothing", place)
    with pytest.raises(BackendError, match=f"cannot be imported from {place}"):
        get_backend("nothing")


def test_options_are_those_of_the_backend():
    options = choose_options(get_backend("native"), {"compute_dtype": torch.bfloat16, "reuse": False, "compile": True})
    assert options == NativeOptions(torch.bfloat16, reuse=False)


@pytest.mark.parametrize(
    ("backend", "given", "known"),
    [
        ("native", {"compile": False}, "compute_dtype, reuse"),
        ("native", {"output_quantizers": True}, "compute_dtype, reuse"),
        ("reference", {"compute_dtype": torch.float16}, "output_quantizers, reduce_range"),
        ("reference", {"reuse": False}, "output_quantizers, reduce_range"),
        ("inductor", {"output_quantizers": True}, "compile, compute_dtype, reduce_range"),
        ("x86", {"reuse": False}, "compute_dtype, reduce_range"),
        ("native", {"threads": 4}, "compute_dtype, reuse"),
    ],
)
def test_an_option_of_another_backend_is_an_error(backend, given, known):
    ((name, _),) = given.items()
    chosen = registry._load(backend, registry._PLACES[backend])
    with pytest.raises(ConfigError, match=f"{name}=.*the {backend} backend has no such option.*are {known}"):
        choose_options(chosen, given)


def test_a_backend_without_options_says_so():
    with pytest.raises(ConfigError, match="It has no options"):
        choose_options(Nothing(), {"reuse": False})


def test_options_another_backend_has_can_be_left_out_quietly():
    assert known_options(get_backend("inductor"), reuse=False, compile=False) == InductorOptions(compile=False)
