"""The configuration refuses what cannot work and resolves rules in order."""

import pytest

from qdiff_fx.config import QDiffConfig, Rule
from qdiff_fx.errors import ConfigError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weight_bits", 1),
        ("weight_bits", 9),
        ("weight_bits", True),
        ("act_bits", 3),
        ("act_bits", 8.0),
        ("softmax_bits", 12),
        ("split", "both"),
        ("weight_range", "l2"),
        ("act_range", "max"),
        ("act_granularity", "channel"),
        ("num_train_timesteps", 0),
        ("timestep_bins", 0),
        ("timestep_bins", 1001),
    ],
)
def test_an_unsupported_value_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=field):
        QDiffConfig(**{field: value})


@pytest.mark.parametrize("changes", [{"weight_bits": 12}, {"act_bits": 2}, {"softmax_bits": 3}, {"act_range": "x"}])
def test_a_rule_is_checked_like_the_configuration(changes):
    with pytest.raises(ConfigError, match="conv_in"):
        Rule("conv_in", **changes)


def test_an_invalid_regular_expression_is_refused():
    with pytest.raises(ConfigError, match="regular expression"):
        Rule("re:(", quantize=False)


def test_the_last_matching_rule_wins_field_by_field():
    config = QDiffConfig(
        weight_bits=4,
        rules=(
            Rule("down_blocks.*", weight_bits=8, act_range="minmax"),
            Rule(r"re:down_blocks\.\d+\.conv", weight_bits=6),
            Rule("conv_out", quantize=False),
        ),
    )
    inner = config.settings_for("down_blocks.1.conv")
    assert (inner.weight_bits, inner.act_range, inner.act_bits, inner.quantize) == (6, "minmax", 8, True)
    assert config.settings_for("mid_block.conv").weight_bits == 4
    assert not config.settings_for("conv_out").quantize


def test_json_round_trip():
    config = QDiffConfig(weight_bits=4, split="all", rules=(Rule("a.*", act_bits=6), Rule("re:b.+", quantize=False)))
    assert QDiffConfig.from_json(config.to_json()) == config


def test_unknown_saved_fields_are_refused():
    with pytest.raises(ConfigError, match="unknown fields"):
        QDiffConfig.from_json({"weight_bit": 4})


def test_the_authors_settings_are_those_of_their_main_tables():
    authors = QDiffConfig.qdiffusion()
    assert (authors.weight_bits, authors.act_bits, authors.softmax_bits) == (4, 8, 8)
    assert (authors.act_range, authors.act_granularity) == ("moving_average", "tensor")
    assert (authors.weight_range, authors.split, authors.quantize_attention) == ("mse", "shortcut", True)
    assert QDiffConfig.qdiffusion(act_range="minmax").act_range == "minmax"


def test_layers_at_the_edges_keep_more_bits():
    config = QDiffConfig(weight_bits=4, edge_weight_bits=8)
    assert config.settings_for("conv_out", at_boundary=True).weight_bits == 8
    assert config.settings_for("mid").weight_bits == 4
    assert QDiffConfig(weight_bits=4, edge_weight_bits=2).settings_for("conv_out", at_boundary=True).weight_bits == 4
