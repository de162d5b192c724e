"""Presets and what a configuration refuses."""

import pytest

from qdiff_fx import QDiffConfig, ReconstructionConfig
from qdiff_fx.errors import ConfigError
from qdiff_fx.reconstruction import PRESETS


def test_presets_differ_and_get_longer():
    steps = [ReconstructionConfig.preset(name).weight_steps for name in PRESETS]
    assert steps == sorted(set(steps))


def test_the_papers_counts():
    paper = ReconstructionConfig.paper()
    assert (paper.weight_steps, paper.act_steps, paper.batch_size) == (20_000, 5_000, 32)
    assert (paper.weight_rate, paper.act_rate, paper.regularisation) == (1e-3, 4e-4, 0.01)
    assert (paper.rate_growth, paper.scale_rate) == (1.0, 0.0)
    assert (paper.objective, paper.joint, paper.act_loss_power) == ("plain", False, 2.4)


@pytest.mark.parametrize(
    "change",
    [{"weight_steps": -1}, {"batch_size": 0}, {"warm_up": 1.0}, {"objective": "best"}, {"beta": (20.0,)}],
)
def test_what_can_never_work_is_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        ReconstructionConfig(**change)


@pytest.mark.parametrize("multiplies", [True, False])
def test_bfloat16_is_learned_in_where_the_processor_multiplies_it(multiplies, monkeypatch):
    monkeypatch.setattr("qdiff_fx.reconstruction.config.multiplies_bfloat16", lambda: multiplies)
    assert ReconstructionConfig.fast().in_bfloat16 == multiplies
    assert not ReconstructionConfig.paper().in_bfloat16
    assert ReconstructionConfig(bfloat16=True).in_bfloat16


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="fast, standard, paper"):
        ReconstructionConfig.preset("best")


def test_the_authors_settings():
    config = QDiffConfig.qdiffusion(act_bits=6)
    assert (config.weight_bits, config.act_bits, config.act_granularity) == (4, 6, "tensor")
    assert QDiffConfig.from_json(config.to_json()) == config
