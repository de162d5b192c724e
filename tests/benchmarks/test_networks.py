"""The measured networks: their work, their inputs, and where they come from."""

from pathlib import Path

import pytest
import torch

from benchmarks.networks import NETWORKS, get_network, shared_module
from qdiff_fx.evaluation import predict


@pytest.mark.parametrize(("name", "gflop", "attention"), [("cifar10", 48.4, 1.3), ("sd15", 1354.4, 252.1)])
def test_work_of_the_published_configurations(name: str, gflop: float, attention: float) -> None:
    work = get_network(name).work()
    assert work.gflop == pytest.approx(gflop, abs=0.05)
    assert work.attention_gflop == pytest.approx(attention, abs=0.05)


@pytest.mark.parametrize(("name", "millions"), [("cifar10", 35.7), ("sd15", 859.5)])
def test_size_of_the_published_configurations(name: str, millions: float) -> None:
    parameters = sum(parameter.numel() for parameter in get_network(name).build(True).parameters())
    assert parameters / 1e6 == pytest.approx(millions, abs=0.05)


@torch.no_grad()
def test_random_weights_are_reproducible_and_keep_activations_finite() -> None:
    network = get_network("sd-tiny")
    first, second = (predict(network.build(False), **network.inputs()) for _ in range(2))
    assert torch.equal(first, second)
    assert 0.05 < float(first.std()) < 20


@pytest.mark.parametrize("name", NETWORKS)
def test_inputs_are_one_step_of_a_sampler(name: str) -> None:
    network = get_network(name)
    inputs = network.inputs(seed=3)
    assert inputs["sample"].shape == (network.batch, *network.sample_shape)
    assert inputs["timestep"].shape == (network.batch,)
    assert inputs["timestep"].unique().numel() == 1
    assert int(inputs["timestep"].max()) < network.num_train_timesteps
    assert not torch.equal(inputs["sample"], network.inputs(seed=4)["sample"])


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(ValueError, match="cifar10"):
        get_network("cifar")


def test_a_missing_folder_says_how_to_point_at_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDIFF_SHARED", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="QDIFF_SHARED"):
        shared_module("anime-ddpm-64")
