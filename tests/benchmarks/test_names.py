"""The names on the command line: variants, contenders, aliases."""

import pytest
import torch

from benchmarks.lineup import expand, get_contender
from benchmarks.ours import Ours
from benchmarks.rivals.openvino import OpenVINO
from benchmarks.rivals.plain_torch import PlainTorch
from benchmarks.variants import SUFFIXES, is_variant, make_config, parse_variant, reconstruction_of


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("w8a8", {"weight_bits": 8, "act_bits": 8}),
        ("w4", {"weight_bits": 4, "act_bits": 8}),
        ("w4a6", {"weight_bits": 4, "act_bits": 6}),
        ("w4a8-pertimestep", {"weight_bits": 4, "act_bits": 8, "act_granularity": "timestep"}),
        ("w8a8-nosplit-minmax", {"weight_bits": 8, "act_bits": 8, "split": "off", "act_range": "minmax"}),
    ],
)
def test_a_variant_names_configuration_fields(name: str, fields: dict) -> None:
    assert parse_variant(name) == fields
    config = make_config(name, num_train_timesteps=300)
    assert config.num_train_timesteps == 300
    assert all(getattr(config, field) == value for field, value in fields.items())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_is_a_valid_configuration(suffix: str) -> None:
    saved = make_config(f"w8a8-{suffix}", 1000).to_json()
    rules = [{"pattern": rule["pattern"], "weight_bits": rule["weight_bits"]} for rule in saved["rules"]]
    assert all((saved | {"rules": rules})[field] == value for field, value in SUFFIXES[suffix].items())


def test_a_reconstruction_is_no_setting_of_the_quantizers() -> None:
    assert make_config("w4a8-nosplit-fast", 300) == make_config("w4a8-nosplit", 300)
    assert reconstruction_of("w4a8-nosplit-fast") == "fast"
    assert reconstruction_of("w4a8-nosplit") == ""


@pytest.mark.parametrize("name", ["a8", "w8a8-", "w8a8-nosplt", "w8x8", ""])
def test_a_misspelt_variant_lists_what_there_is(name: str) -> None:
    with pytest.raises(ValueError, match="-pertimestep"):
        parse_variant(name)


def test_variants_are_told_from_rivals() -> None:
    assert is_variant("w4a8-nosplit")
    assert not is_variant("openvino-int8-default-f32")
    assert not is_variant("fp")


@pytest.mark.parametrize(
    ("name", "contender"),
    [
        ("inductor", Ours("inductor")),
        ("inductor-bf16", Ours("inductor", dtype="bf16")),
        ("x86-w4", Ours("x86", variant="w4")),
        ("inductor-bf16-w4a8-pertimestep", Ours("inductor", dtype="bf16", variant="w4a8-pertimestep")),
        ("torch-bf16", PlainTorch(torch.bfloat16)),
        ("openvino-int8-transformer-bf16", OpenVINO("bf16", "transformer")),
    ],
)
def test_names_of_contenders(name: str, contender: object) -> None:
    assert get_contender(name) == contender


@pytest.mark.parametrize("name", ["inductr", "inductor-w4a8-nosplt", "inductor-fp16", "openvino"])
def test_unknown_contenders_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="inductor|-nosplit"):
        get_contender(name)


def test_backends_of_one_variant_share_the_saved_network() -> None:
    assert get_contender("inductor").artifact == get_contender("x86").artifact
    assert get_contender("inductor").artifact != get_contender("inductor-w4").artifact
    assert get_contender("torch-bf16").artifact == ""


def test_aliases_expand_and_nothing_runs_twice() -> None:
    names = expand(["inductor", "openvino-int8", "openvino-int8-default-f32", "inductor"])
    assert names == [
        "inductor",
        "openvino-int8-default-f32",
        "openvino-int8-default-bf16",
        "openvino-int8-transformer-f32",
        "openvino-int8-transformer-bf16",
    ]
    assert all(get_contender(name) for name in names)
