"""What depends on the timestep or the prompt alone is computed once, and never used for another."""

from __future__ import annotations

import copy

import pytest
import torch
import zoo
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from qdiff_fx.backends.native.runtime.reuse import MODULES, Depends, Remembered


class Counting(nn.Module):
    """The sum of its inputs, and how often it was asked."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, *inputs):
        self.calls += 1
        return (sum(torch.as_tensor(value).double().sum() for value in inputs),)


class TestRemembered:
    @given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.booleans()), max_size=30))
    def test_it_answers_as_the_module_does(self, calls):
        module = Counting()
        remembered = Remembered(module)
        seen = set()
        for small, large, transposed in calls:
            prompt = torch.full((20, 10), float(large))
            inputs = (torch.tensor([small]), prompt.t() if transposed else prompt, small)
            assert torch.equal(remembered(*inputs)[0], Counting()(*inputs)[0])
            seen.add((small, large, transposed))
        assert module.calls >= len(seen)

    def test_the_same_inputs_are_computed_once(self):
        module = Counting()
        remembered = Remembered(module)
        for _ in range(3):
            for t in range(5):
                remembered(torch.tensor([t, t]), 7)
        assert module.calls == 5

    def test_a_tensor_changed_in_place_is_noticed(self):
        remembered = Remembered(Counting())
        prompt = torch.ones(100)
        before = remembered(prompt)[0]
        prompt[3] = 5.0
        assert remembered(prompt)[0] == before + 4

    @pytest.mark.parametrize("other", [torch.ones(100, dtype=torch.float64), torch.ones(10, 10), torch.ones(101)])
    def test_another_kind_of_tensor_is_not_confused(self, other):
        module = Counting()
        remembered = Remembered(module)
        remembered(torch.ones(100))
        remembered(other)
        assert module.calls == 2

    def test_what_is_no_number_is_never_found_again(self):
        module = Counting()
        remembered = Remembered(module)
        for _ in range(2):
            remembered(torch.full((100,), float("nan")))
        assert module.calls == 2

    def test_memory_is_bounded(self):
        class Large(nn.Module):
            def forward(self, t):
                return (torch.zeros(1000) + t,)

        remembered = Remembered(Large(), limit_bytes=20_000)
        for t in range(50):
            assert remembered(torch.tensor([float(t)]))[0][0] == t
        assert len(remembered.entries) == 5
        assert sum(entry.nbytes for entry in remembered.entries.values()) <= 20_000
        # A result that alone is too large is kept: it is in use anyway.
        tiny = Remembered(Large(), limit_bytes=10)
        tiny(torch.tensor([1.0]))
        assert len(tiny.entries) == 1

    def test_a_copy_remembers_nothing(self):
        remembered = Remembered(Counting())
        remembered(torch.ones(2))
        assert len(copy.deepcopy(remembered).entries) == 0


def steps(name):
    """A trajectory's calls: timesteps that come again, and prompts that change."""
    inputs = zoo.captured(name)[1]
    _, timestep, *conditioning = inputs
    for number, t in enumerate((900, 500, 900, 3, 500)):
        call = inputs | {timestep: torch.full((zoo.BATCH,), t)}
        if number == 3:
            call |= {key: zoo.resized(inputs[key], zoo.BATCH) for key in conditioning}
        yield call


@zoo.every_architecture
def test_results_are_the_same_to_the_bit(name):
    quantized = zoo.quantized(name)
    with_reuse, without = (quantized.with_backend("native", reuse=on) for on in (True, False))
    for call in steps(name):
        results = [zoo.tensors_of(network(**call)) for network in (with_reuse, without)]
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    modules = dict(with_reuse._lowered.module.graph_module.named_children())
    assert not set(MODULES.values()) & set(dict(without._lowered.module.graph_module.named_children()))
    assert MODULES[Depends.TIMESTEP] in modules or "handwritten" in name


@pytest.mark.parametrize("name", zoo.networks("sd1", "masked", "conditioned"))
def test_keys_and_values_depend_on_the_prompt_alone(name):
    network = zoo.quantized(name).with_backend("native")
    module = network._lowered.module.graph_module
    remembered = module.get_submodule(MODULES[Depends.CONDITIONING])
    for call in steps(name):
        network(**call)
    assert len(remembered.entries) == 1
    assert len(module.get_submodule(MODULES[Depends.TIMESTEP]).entries) == 3
