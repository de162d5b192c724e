"""What a user of PyTorch does to any module: states, casts, moves, copies. It holds whole, or is refused."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qdiff_fx import PreparedUNet, QDiffConfig, convert_qdiff, load_qdiff, prepare_qdiff, round_weights, save_qdiff
from qdiff_fx.errors import InputError, QDiffError

X, T = torch.linspace(-1, 1, 2 * 3 * 16).reshape(2, 3, 4, 4), torch.tensor([10.0, 10.0])
BACKENDS = ("reference", "native")


class Net(nn.Module):
    """Its time embedding and a buffer of it are results, beside the prediction and the sample itself."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last, self.time = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1), nn.Linear(4, 8)
        self.register_buffer("table", torch.randn(4))

    def forward(self, x, t):
        embedding = self.time(torch.sin(t[:, None] * torch.arange(1, 5)))
        h = self.first(x) + embedding[:, :, None, None]
        return self.last(F.silu(h)), embedding, self.table, x


def made(seed: int = 0, scale: float = 1.0, **config) -> tuple[Net, PreparedUNet]:
    net = Net(seed).eval()
    prepared = prepare_qdiff(net, QDiffConfig(**{"weight_bits": 4, "timestep_bins": 2, **config}), {"x": X, "t": T})
    with torch.no_grad():
        prepared(X * scale, T)
    return net, prepared


@pytest.fixture(scope="module")
def twins():
    """Networks of the same weights that saw other data, and of other weights."""
    return made(), made(scale=3.0), made(seed=1)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class TestQuantized:
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_its_own_state_can_be_loaded_and_no_other(self, twins, backend):
        quantized, others = convert_qdiff(twins[0][1], backend), [convert_qdiff(each[1], backend) for each in twins[1:]]
        before = quantized(X, T)
        quantized.load_state_dict(quantized.state_dict())
        nn.ModuleList([quantized]).load_state_dict(nn.ModuleList([quantized]).state_dict())
        for other in others:
            with pytest.raises(InputError, match=r"other values have graph_.*Save the network with save_qdiff"):
                quantized.load_state_dict(other.state_dict())
            with pytest.raises(InputError, match="other values have"):
                nn.ModuleList([quantized]).load_state_dict(nn.ModuleList([other]).state_dict(), strict=False)
        with pytest.raises(InputError, match=r"it lacks .* more; it has, and the network has not, table, "):
            quantized.load_state_dict(twins[0][0].state_dict())
        with pytest.raises(InputError, match="assign=True"):
            quantized.load_state_dict(quantized.state_dict(), assign=True)
        assert equal(quantized(X, T), before)

    def test_scales_that_are_numbers_in_the_graph_are_part_of_its_state(self):
        one, other = (convert_qdiff(made(scale=scale, act_granularity="tensor")[1], "reference") for scale in (1, 3))
        with pytest.raises(InputError, match="other values have graph_digest"):
            one.load_state_dict(other.state_dict())

    def test_a_loaded_network_whose_weights_are_packed_has_a_state(self, twins, tmp_path):
        quantized = convert_qdiff(twins[0][1], "reference")
        loaded = load_qdiff(save_qdiff(quantized, tmp_path / "net"))
        before = loaded(X, T)
        assert not [buffer for buffer in loaded.buffers() if buffer.untyped_storage().nbytes() < buffer.nbytes]
        state, expected = loaded.state_dict(), quantized.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], expected[key]) for key in expected)
        loaded.load_state_dict(expected)
        assert equal(loaded(X, T), before)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_what_would_change_half_of_it_is_refused(self, twins, backend):
        quantized = convert_qdiff(twins[0][1], backend)
        before = quantized(X, T)
        with pytest.raises(QDiffError, match="cannot move to meta"):
            nn.ModuleList([quantized]).to("meta")
        with pytest.raises(QDiffError, match="be trained"):
            quantized.train()
        with pytest.raises(QDiffError, match="cannot be trained: it computes in integers"):
            quantized.requires_grad_()
        quantized.requires_grad_(False).cpu().float().eval().to_empty(device="cpu").share_memory().zero_grad()
        assert not any(parameter.requires_grad for parameter in quantized.parameters())
        assert equal(quantized(X, T), before)
        assert equal(copy.deepcopy(quantized)(X, T), before)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_training_the_float_network_on_does_not_reach_it(self, backend):
        net, prepared = made()
        quantized = convert_qdiff(prepared, backend, reuse=False) if backend == "native" else convert_qdiff(prepared)
        before, state = quantized(X, T), copy.deepcopy(quantized.state_dict())
        with torch.no_grad():
            for tensor in (*net.parameters(), *net.buffers()):
                tensor.add_(1)
        assert equal(quantized(X, T), before)
        assert equal(quantized.state_dict().values(), state.values())


class TestPrepared:
    def test_a_state_brings_back_what_was_seen(self, twins):
        fresh = copy.deepcopy(twins[0][1])
        fresh.load_state_dict(twins[1][1].state_dict())
        expected, found = (convert_qdiff(each, "reference") for each in (twins[1][1], fresh))
        assert equal(found(X, T), expected(X, T))
        assert not equal(found(X, T), convert_qdiff(twins[0][1], "reference")(X, T))

    def test_a_state_of_other_weights_is_refused_and_the_float_network_left_alone(self, twins):
        net, prepared = twins[0]
        weight, state = net.first.weight.clone(), copy.deepcopy(prepared.state_dict())
        with pytest.raises(InputError, match=r"other values have graph_module\..*Prepare it from the weights"):
            prepared.load_state_dict(twins[2][1].state_dict())
        assert torch.equal(net.first.weight, weight)
        assert equal(prepared.state_dict().values(), state.values())

    def test_a_state_of_another_schedule_is_refused(self, twins):
        _, longer = made(num_train_timesteps=4000)
        with pytest.raises(InputError, match="other values have graph_digest"):
            twins[0][1].load_state_dict(longer.state_dict())

    def test_codes_that_were_decided_are_not_lost_without_a_word(self, twins):
        rounded = copy.deepcopy(twins[0][1])
        round_weights(rounded, [{"x": X, "t": T}], progress=False)
        with pytest.raises(InputError, match="it has, and the network has not, decided_digest.*load_prepared"):
            twins[0][1].load_state_dict(rounded.state_dict())
        with pytest.raises(InputError, match="it lacks decided_digest"):
            rounded.load_state_dict(twins[0][1].state_dict())
        rounded.load_state_dict(rounded.state_dict())

    def test_casts_by_way_of_a_parent_reach_it(self, twins):
        prepared = copy.deepcopy(twins[0][1])
        nn.ModuleList([prepared]).half()
        assert prepared.dtype == torch.float16
        assert all(each.dtype != torch.float16 for each in prepared.graph_module.parameters())


@pytest.mark.parametrize("backend", ["prepared", *BACKENDS])
def test_what_a_network_returns_may_be_written_to(twins, backend):
    """The embedding, which is remembered, a buffer, which is returned as it is, and the sample."""
    net, prepared = twins[0]
    network = prepared if backend == "prepared" else convert_qdiff(prepared, backend)
    table, x, t = net.table.clone(), X.clone(), T.clone()
    with torch.no_grad():
        expected = [output.clone() for output in network(x, t)]
        for index in range(4):
            network(x, t)[index].mul_(7)
            assert equal(network(x, t), expected)
            assert equal(copy.deepcopy(network)(x, t), expected)
    assert torch.equal(x, X)
    assert torch.equal(net.table, table)


def test_what_the_caller_writes_into_his_inputs_is_noticed(twins):
    network = convert_qdiff(twins[0][1])
    x, t = X.clone(), T.clone()
    network(x, t)
    x.add_(1)
    t.add_(5)
    assert equal(network(x, t), convert_qdiff(twins[0][1])(x, t))
