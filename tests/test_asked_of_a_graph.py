"""What people and diffusers do to networks, done to a quantized one: other types, hooks, what it does not have."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers.hooks import apply_layerwise_casting
from torch import nn
from zoo import ONE_CROSS_ATTENTION, ONE_RESOLUTION, conditional, noise, prompt, unconditional

from qdiff_fx import QDiffConfig, calibrate, convert_qdiff, load_qdiff, prepare_qdiff, save_qdiff
from qdiff_fx.errors import InputError, QDiffError
from qdiff_fx.networks.lora import WithLora
from qdiff_fx.signature.missing import WHY_NOT, MissingError


@pytest.fixture(scope="module")
def example():
    torch.manual_seed(0)
    return {"sample": noise(3), "timestep": 7}


@pytest.fixture(scope="module")
def prepared(example):
    made = prepare_qdiff(unconditional(**ONE_RESOLUTION), QDiffConfig(timestep_bins=1), example)
    calibrate(made, [example], progress=False)
    return made


@pytest.fixture(scope="module")
def quantized(prepared):
    return convert_qdiff(prepared, "reference")


class TestAnotherType:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_it_is_taken_and_returned_and_the_numbers_stay(self, quantized, example, dtype):
        moved = copy.deepcopy(quantized).to(dtype)
        sample = example["sample"].to(dtype)
        found = moved(sample, 7).sample
        assert (moved.dtype, found.dtype) == (dtype, dtype)
        assert torch.equal(found, quantized(sample.float(), 7).sample.to(dtype))
        assert torch.equal(moved.to(torch.float32)(**example).sample, quantized(**example).sample)

    def test_a_type_it_was_not_moved_to_is_refused(self, quantized, example):
        moved = copy.deepcopy(quantized).half()
        with pytest.raises(InputError, match=r"'sample': is bfloat16, but the network was captured with float32"):
            moved(example["sample"].bfloat16(), 7)

    def test_a_prepared_network_calibrates_in_it(self, prepared, example):
        moved = copy.deepcopy(prepared).to(torch.float16)
        assert moved(example["sample"].half(), 7).sample.dtype == torch.float16
        assert convert_qdiff(moved, "reference").dtype == torch.float16

    def test_it_is_saved_with_the_network(self, quantized, example, tmp_path):
        save_qdiff(copy.deepcopy(quantized).half(), tmp_path / "net")
        loaded = load_qdiff(tmp_path / "net", "reference")
        half = example["sample"].half()
        assert loaded.dtype == torch.float16
        assert torch.equal(loaded(half, 7).sample, quantized(half.float(), 7).sample.half())

    def test_autocast_changes_nothing(self, quantized, example):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = quantized(**example).sample
            rounded = quantized(example["sample"].bfloat16(), 7).sample
        assert torch.equal(found, quantized(**example).sample)
        assert torch.equal(rounded, quantized(example["sample"].bfloat16().float(), 7).sample)

    def test_its_parameters_tell_it(self, quantized, prepared, example, tmp_path):
        """As pipelines ask; a loaded network holds none, or other ones."""
        save_qdiff(copy.deepcopy(quantized).half(), tmp_path / "net")
        for network in (quantized, prepared, load_qdiff(tmp_path / "net")):
            assert next(network.parameters()).dtype == network.dtype
            assert "called_in" not in network.state_dict()


class TestHooks:
    def test_its_own_are_called(self, quantized, example):
        seen = []
        handle = quantized.register_forward_hook(lambda module, args, output: seen.append(output))
        quantized(**example)
        handle.remove()
        assert len(seen) == 1

    def test_those_on_what_does_not_run_are_an_error(self, quantized, example):
        handle = quantized.graph_module.register_forward_hook(lambda *_: None)
        with pytest.raises(QDiffError, match="would never be called.*Put them on the network itself"):
            quantized(**example)
        handle.remove()
        quantized(**example)

    @pytest.mark.parametrize("kind", ["prepared", "quantized"])
    def test_those_of_diffusers_between_blocks_are_refused(self, kind, request):
        network = request.getfixturevalue(kind)
        with pytest.raises(QDiffError, match="of diffusers finds no blocks to put its hooks on"):
            apply_layerwise_casting(network, torch.float8_e4m3fn, torch.float32)

    def test_weights_cannot_be_moved_away(self, quantized):
        hook = type("AlignDevicesHook", (), {})()
        with pytest.raises(QDiffError, match="sequential offloading.*enable_model_cpu_offload"):
            quantized._hf_hook = hook
        with pytest.raises(QDiffError, match="sequential offloading"):
            quantized._hf_hook = type("SequentialHook", (), {"hooks": (hook,)})()

    def test_a_cache_between_blocks_has_nothing_to_know(self, quantized, example):
        with quantized.cache_context("cond", step_index=3):
            quantized(**example)


class TestMissing:
    @pytest.mark.parametrize("name", sorted(WHY_NOT))
    def test_what_diffusers_asks_for_is_one_sentence_and_a_way_out(self, prepared, quantized, name):
        for network in (prepared, quantized):
            if name in dir(WithLora):
                continue
            assert not hasattr(network, name)
            with pytest.raises(MissingError, match=f"{type(network).__name__}: there is no '{name}': ") as raised:
                getattr(network, name)
            assert raised.value.fix

    def test_so_is_anything_else(self, quantized):
        with pytest.raises(AttributeError, match="there is no 'down_blocks': it is a graph, not the modules"):
            _ = quantized.down_blocks

    def test_pythons_own_protocols_are_left_alone(self, quantized):
        with pytest.raises(AttributeError) as raised:
            quantized.__length_hint__()
        assert not isinstance(raised.value, MissingError)


class TestCapturing:
    def test_a_layer_that_is_the_same_in_training_may_be_left_in_it(self, example):
        network = unconditional(**ONE_RESOLUTION)
        next(module for module in network.modules() if isinstance(module, nn.Linear)).train()
        prepare_qdiff(network, QDiffConfig(), example)

    def test_a_lora_beside_a_layer_is_named(self, example):
        network = unconditional(**ONE_RESOLUTION)
        layer = network.mid_block.attentions[0].to_q
        layer.merged_adapters = []
        with pytest.raises(QDiffError, match=r"mid_block\.attentions\.0\.to_q: a LoRA is computed.*fuse_lora"):
            prepare_qdiff(network, QDiffConfig(), example)
        layer.merged_adapters = ["style"]
        prepare_qdiff(network, QDiffConfig(), example)

    def test_hooks_of_others_are_named(self, example):
        network = unconditional(**ONE_RESOLUTION)
        network.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
        with pytest.raises(QDiffError, match="hooks of diffusers change what it computes.*before casting"):
            prepare_qdiff(network, QDiffConfig(), example)
        network = unconditional(**ONE_RESOLUTION)
        network.conv_in._hf_hook = object()
        with pytest.raises(QDiffError, match="conv_in: accelerate moves its weights.*remove_all_hooks"):
            prepare_qdiff(network, QDiffConfig(), example)

    def test_sliced_attention_leaves_the_batch_open(self):
        network = conditional(**ONE_CROSS_ATTENTION)
        network.set_attention_slice(1)
        inputs = {"sample": noise(4), "timestep": 7, "encoder_hidden_states": prompt()}
        found = prepare_qdiff(network, QDiffConfig(), inputs)
        assert not found.signature.fixed_sizes
        assert "Sliced" in type(network.mid_block.attentions[0].transformer_blocks[0].attn1.processor).__name__
