"""The call signature: every way to call a network, what is refused and how, JSON, and life inside a pipeline."""

from __future__ import annotations

import copy
import json
from collections import namedtuple
from typing import Any

import pytest
import torch
import zoo
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
)
from diffusers.utils import BaseOutput
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from qdiff_fx.capture import capture
from qdiff_fx.errors import InputError, QDiffError
from qdiff_fx.signature import (
    CallSignature,
    CaptureMismatchError,
    Config,
    DropIn,
    Output,
    Parameter,
    Size,
    TensorInput,
)
from qdiff_fx.signature.outputs import flatten_output, pack_output


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def drop_in(name: str) -> tuple[nn.Module, dict[str, Any], DropIn]:
    model, inputs, graph = zoo.captured(name)
    return model, inputs, DropIn(graph.module, graph.signature)


class TestCallStyles:
    def test_positional_and_keyword(self):
        model, inputs, ours = drop_in("conditioned")
        expected = model(**inputs).sample
        more = dict(inputs)
        x, t, c = (more.pop(name) for name in ("sample", "timestep", "encoder_hidden_states"))
        assert torch.allclose(ours(x, t, c, **more).sample, expected, atol=1e-6)
        assert torch.allclose(ours(x, timestep=t, encoder_hidden_states=c, **more)[0], expected, atol=1e-6)

    def test_return_dict(self):
        _, inputs, ours = drop_in("conditioned")
        as_tuple = ours(**inputs, return_dict=False)
        assert isinstance(as_tuple, tuple)
        assert torch.equal(as_tuple[0], ours(**inputs).sample)
        assert torch.equal(as_tuple[0], ours(**inputs, return_dict=None)["sample"])

    @pytest.mark.parametrize(
        "timestep",
        [301, 301.0, torch.tensor(301), torch.tensor([301]), torch.tensor([301.0, 301.0]), torch.tensor(301.0)],
        ids=str,
    )
    def test_timestep_forms(self, timestep):
        model, inputs, ours = drop_in("conditioned")
        assert torch.allclose(ours(**inputs | {"timestep": timestep}).sample, model(**inputs).sample, atol=1e-6)

    def test_fractional_timesteps_of_a_diffusers_network(self):
        model, inputs, ours = drop_in("conditioned")
        call = inputs | {"timestep": torch.tensor(300.25)}
        assert torch.allclose(ours(**call).sample, model(**call).sample, atol=1e-6)
        assert not torch.allclose(ours(**call).sample, ours(**inputs).sample, atol=1e-6)

    def test_absent_conditioning_may_be_spelled_out(self):
        _, inputs, ours = drop_in("conditioned")
        spelled = ours(**inputs, class_labels=None, cross_attention_kwargs=None, timestep_cond=None)
        assert torch.equal(spelled.sample, ours(**inputs).sample)

    def test_integer_labels_of_another_width(self):
        _, inputs, ours = drop_in("one_resolution")
        narrow = inputs | {"class_labels": inputs["class_labels"].int()}
        assert torch.equal(ours(**narrow).sample, ours(**inputs).sample)

    def test_nested_inputs_are_named_by_their_place(self):
        assert [spec.name for spec in zoo.captured("conditioned")[2].signature.inputs][3:] == [
            "added_cond_kwargs.text_embeds",
            "added_cond_kwargs.time_ids",
            "down_block_additional_residuals.0",
            "down_block_additional_residuals.1",
            "mid_block_additional_residual",
            "encoder_attention_mask",
        ]

    def test_flatten_inputs_is_what_the_graph_takes(self):
        _, inputs, ours = drop_in("one_resolution")
        flat = ours.flatten_inputs((inputs["sample"],), {"timestep": 7, "class_labels": inputs["class_labels"]})
        assert [tuple(tensor.shape) for tensor in flat] == [(2, 3, 16, 16), (2,), (2,)]
        assert flat[1].dtype == torch.float32
        assert torch.equal(ours.graph_module(*flat)[0], ours(**inputs | {"timestep": 7}).sample)


class TestRefusedCalls:
    def refuse(self, name: str, error: type[Exception], message: str, *args: Any, **changes: Any) -> None:
        _, inputs, ours = drop_in(name)
        with pytest.raises(error, match=message):
            ours(*args, **inputs | changes)

    def test_missing_conditioning(self):
        self.refuse("one_resolution", CaptureMismatchError, "missing class_labels.*Pass exactly", class_labels=None)

    def test_extra_conditioning(self):
        message = "not captured with timestep_cond"
        self.refuse("conditioned", CaptureMismatchError, message, timestep_cond=torch.ones(2, 12))

    def test_size_that_is_not_a_multiple(self):
        odd = torch.randn(2, 3, 17, 16)
        message = r"'x': height 17 is not a multiple of 2; .*captured as \(batch, 3, 2\*height, 2\*width\)"
        self.refuse("handwritten_sum", CaptureMismatchError, message, x=odd)

    def test_sizes_that_do_not_go_together(self):
        message = "'encoder_hidden_states': batch is 3, but 2 goes with sample"
        self.refuse("conditioned", CaptureMismatchError, message, encoder_hidden_states=torch.randn(3, 5, 24))

    def test_channels(self):
        self.refuse("conditioned", CaptureMismatchError, "size 5 in dimension 1", sample=zoo.noise(5))

    def test_rank(self):
        self.refuse("conditioned", CaptureMismatchError, "has 3 dimensions", sample=torch.randn(4, 16, 16))

    def test_dtype(self):
        message = r"'sample': is float16, but .*float32.*\.to\(torch.float32\)"
        self.refuse("conditioned", InputError, message, sample=zoo.noise(4).half())

    def test_unknown_argument(self):
        self.refuse("conditioned", InputError, "'sampel': the network has no such argument. It takes sample", sampel=1)

    def test_twice(self):
        self.refuse("conditioned", InputError, "'sample': was given twice", zoo.noise(4))

    def test_too_many(self):
        _, _, ours = drop_in("handwritten_sum")
        with pytest.raises(InputError, match="3 positional arguments, but the network takes 2: x, t"):
            ours(1, 2, 3)

    def test_required(self):
        _, inputs, ours = drop_in("handwritten_sum")
        with pytest.raises(InputError, match="missing t"):
            ours(inputs["x"])

    def test_fractional_timestep_of_an_integer_capture(self):
        self.refuse("handwritten_sum", InputError, "fractional timestep 2.5, .*int64 timesteps", t=2.5)

    def test_whole_float_timestep_of_an_integer_capture(self):
        _, inputs, ours = drop_in("handwritten_sum")
        assert torch.equal(ours(inputs["x"], 2.0), ours(inputs["x"], 2))

    def test_timestep_that_is_no_number(self):
        self.refuse("conditioned", InputError, "'timestep': a timestep cannot be a str", timestep="301")

    def test_constants(self):
        class Scaled(nn.Module):
            def forward(self, x, scale=1.0, *, invert=False):
                return -x * scale if invert else x * scale

        graph = capture(Scaled().eval(), {"x": zoo.noise(3), "scale": 2.0})
        ours, x = DropIn(graph.module, graph.signature), zoo.noise(3)
        assert torch.equal(ours(x, 2.0), 2 * x)
        assert torch.equal(ours(x, scale=2.0, invert=False), 2 * x)
        with pytest.raises(InputError, match="'scale': was 2.0 when the network was captured.*cannot become 1.0"):
            ours(x)
        with pytest.raises(InputError, match="'invert': was False"):
            ours(x, 2.0, invert=True)


@zoo.every_architecture
def test_json_round_trip(name):
    signature = zoo.captured(name)[2].signature
    assert CallSignature.from_json(json.loads(json.dumps(signature.to_json()))) == signature


@pytest.mark.parametrize("name", ["conditioned", "handwritten_matmul"])
def test_rebuilt_drop_in_gives_the_same_result(name):
    _, inputs, ours = drop_in(name)
    rebuilt = DropIn(ours.graph_module, CallSignature.from_json(json.loads(json.dumps(ours.signature.to_json()))))
    first, second = rebuilt(**inputs), ours(**inputs)
    assert type(first) is type(second)
    assert all(torch.equal(first[key], second[key]) for key in second)


sizes = st.one_of(st.integers(1, 8), st.builds(Size, st.sampled_from(["batch", "height"]), st.integers(1, 8)))
names = st.text("abc._0", min_size=1, max_size=6)
constants = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=4))


@given(
    parameters=st.lists(st.builds(Parameter, names, st.booleans(), st.booleans(), constants), max_size=3),
    inputs=st.lists(
        st.builds(
            TensorInput,
            names,
            st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]),
            st.lists(sizes, max_size=4).map(tuple),
            st.sampled_from(["", "sample", "timestep"]),
        ),
        max_size=3,
    ),
    values=st.dictionaries(names, constants.filter(lambda value: value is not None), max_size=3),
)
def test_any_signature_survives_json(parameters, inputs, values):
    signature = CallSignature(tuple(parameters), tuple(inputs), values, {"kind": "tensor"})
    assert CallSignature.from_json(json.loads(json.dumps(signature.to_json()))) == signature


tensors = st.integers(0, 100).map(lambda value: torch.full((1,), value))
results = st.recursive(
    st.one_of(tensors, st.none(), st.integers()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ),
    max_leaves=8,
)


@given(results)
def test_any_result_is_put_back_together(result):
    flat, structure = flatten_output(result)
    assert pack_output(flat, json.loads(json.dumps(structure))) == result


class TestOutputClasses:
    def test_another_diffusers_class_reads_the_same(self):
        from dataclasses import dataclass

        @dataclass
        class PriorOutput(BaseOutput):
            embedding: torch.Tensor
            extra: torch.Tensor | None = None

        original = PriorOutput(embedding=torch.ones(2))
        packed = pack_output(*flatten_output(original))
        assert type(packed) is Output
        assert packed.embedding is packed["embedding"] is packed[0] is original.embedding
        assert packed.to_tuple() == original.to_tuple()

    def test_namedtuple(self):
        pair = namedtuple("pair", "mean variance")(torch.zeros(1), torch.ones(1))
        packed = pack_output(*flatten_output(pair))
        assert packed.variance is pair.variance
        assert pack_output(*flatten_output(pair), return_dict=False) == tuple(pair)

    def test_unknown_attribute(self):
        with pytest.raises(AttributeError, match="no 'sampel', only sample"):
            _ = Output(sample=1).sampel

    def test_unknown_class_names_are_not_imported(self):
        structure = {"kind": "output", "class": "Popen", "items": {"args": {"kind": "constant", "value": 1}}}
        assert type(pack_output([], structure)) is Output


class TestConfig:
    def test_reads_by_attribute_and_key(self):
        config = Config({"in_channels": 4, "sample_size": [8, 8]})
        assert config.in_channels == config["in_channels"] == 4
        assert dict(config) == {"in_channels": 4, "sample_size": [8, 8]}
        assert not hasattr(config, "missing")
        assert config.get("missing", 1) == 1

    def test_cannot_be_changed(self):
        with pytest.raises(AttributeError, match="cannot be changed"):
            Config({}).in_channels = 3

    def test_copies(self):
        assert dict(copy.deepcopy(Config({"a": 1}))) == {"a": 1}

    def test_of_a_diffusers_network(self):
        model, _, ours = drop_in("conditioned")
        for name in ("in_channels", "sample_size", "time_cond_proj_dim", "addition_time_embed_dim"):
            assert getattr(ours.config, name) == getattr(model.config, name)
        assert ours.add_embedding.linear_1.in_features == model.add_embedding.linear_1.in_features

    def test_a_network_without_one(self):
        assert dict(drop_in("handwritten_sum")[2].config) == {}


class TestModule:
    def test_stays_in_eval_mode(self):
        ours = drop_in("handwritten_sum")[2]
        assert not any(module.training for module in ours.modules())
        assert ours.eval() is ours
        with pytest.raises(QDiffError, match="cannot be trained: it was captured in eval mode"):
            ours.train()

    def test_stays_in_place(self):
        ours = drop_in("handwritten_sum")[2]
        assert ours.to("cpu") is ours.to(torch.float32) is ours.float() is ours.to(device="cpu", dtype=None) is ours
        with pytest.raises(QDiffError, match="move to meta: it was captured on cpu"):
            ours.to("meta")
        assert ours.dtype == torch.float32
        assert ours.device == torch.device("cpu")

    def test_deepcopy(self):
        _, inputs, ours = drop_in("handwritten_attention")
        twin = copy.deepcopy(ours)
        assert torch.equal(twin(**inputs)[0], ours(**inputs)[0])
        assert next(twin.parameters()).data_ptr() != next(ours.parameters()).data_ptr()


class TestInsidePipelines:
    """`pipe.unet = drop_in` samples the same images as the network it was captured from."""

    def drop_in(self, network: nn.Module, **inputs: Any) -> tuple[nn.Module, DropIn]:
        graph = capture(network, inputs)
        return network, DropIn(graph.module, graph.signature)

    def test_ddpm(self):
        model, ours = self.drop_in(zoo.unconditional(**zoo.ONE_RESOLUTION), sample=zoo.noise(3), timestep=7)
        pipe = DDPMPipeline(model, DDIMScheduler())
        pipe.set_progress_bar_config(disable=True)
        run = {"num_inference_steps": 2, "output_type": "np", "batch_size": 1}
        expected = pipe(**run, generator=torch.Generator().manual_seed(0)).images
        pipe.unet = ours
        images = pipe(**run, generator=torch.Generator().manual_seed(0)).images
        assert abs(images - expected).max() < 1e-4

    def test_stable_diffusion_with_fractional_timesteps(self):
        unet = zoo.conditional(**zoo.ONE_CROSS_ATTENTION, mid_block_type=None)
        model, ours = self.drop_in(unet, sample=zoo.noise(4), timestep=7, encoder_hidden_states=zoo.prompt())
        torch.manual_seed(0)
        vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=8, latent_channels=4, sample_size=16)
        pipe = StableDiffusionPipeline(
            vae.eval(),
            text_encoder=None,
            tokenizer=None,
            unet=model,
            scheduler=EulerDiscreteScheduler(timestep_spacing="linspace"),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        run = {
            "prompt_embeds": torch.randn(1, zoo.TOKENS, 24),
            "negative_prompt_embeds": torch.randn(1, zoo.TOKENS, 24),
            "num_inference_steps": 2,
            "output_type": "latent",
        }
        expected = pipe(**run, generator=torch.Generator().manual_seed(0)).images
        pipe.unet = ours
        assert pipe.device == torch.device("cpu")
        images = pipe(**run, generator=torch.Generator().manual_seed(0)).images
        assert torch.allclose(images, expected, atol=1e-4, rtol=1e-4)
