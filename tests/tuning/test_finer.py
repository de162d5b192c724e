"""Finer bits for the layers that matter most, on a decoder in which it is known which these are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_graphs import Shortcut, prepare
from torch import Tensor, nn

from qdiff_fx import PreparedUNet, QDiffConfig, Rule, calibrate, convert_qdiff, prepare_qdiff
from qdiff_fx.calibration import CalibrationData
from qdiff_fx.errors import CalibrationError, ConfigError
from qdiff_fx.ir.facts import layer_info, quantized_layers
from qdiff_fx.report.bits import bits_of_layers
from qdiff_fx.tuning import finer as module
from qdiff_fx.tuning.choice import Choice
from qdiff_fx.tuning.finer import Limits, finer, finer_passes
from qdiff_fx.tuning.layer_substitution import LayerSubstitution
from qdiff_fx.tuning.predicted import predicted
from qdiff_fx.tuning.squares import squares_of
from qdiff_fx.tuning.units import units_of

LOUD, LAYERS, CHANNELS, SIZE = "layers.2.0", 6, 16, 12
W4 = QDiffConfig(weight_bits=4)


class Decoder(nn.Module):
    """Residual layers between an edge and another; what one of them adds is ten times as large, and its error too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, CHANNELS, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU()) for _ in range(LAYERS)
        )
        self.last = nn.Conv2d(CHANNELS, 3, 3, padding=1)

    def forward(self, sample: Tensor) -> Tensor:
        x = self.first(sample)
        for index, layer in enumerate(self.layers):
            x = x + layer(x) * (4.0 if f"layers.{index}.0" == LOUD else 0.4)
        return self.last(x)


@pytest.fixture(scope="module")
def decoder() -> nn.Module:
    torch.manual_seed(0)
    return Decoder().eval()


@pytest.fixture(scope="module")
def batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"sample": torch.randn(2, 4, SIZE, SIZE, generator=generator)} for _ in range(3)]


def calibrated(decoder: nn.Module, batches: list[dict[str, Tensor]], config: QDiffConfig = W4) -> PreparedUNet:
    prepared = prepare_qdiff(decoder, config, batches[0])
    calibrate(prepared, batches, progress=False)
    return prepared


@pytest.fixture(scope="module")
def prepared(decoder: nn.Module, batches: list[dict[str, Tensor]]) -> PreparedUNet:
    return calibrated(decoder, batches)


def bits(network: PreparedUNet) -> dict[str, tuple[int, int]]:
    """Of weights and inputs, by path."""
    infos = [layer_info(node) for node in quantized_layers(convert_qdiff(network, "reference").graph_module)]
    return {info.path: (info.weight_bits, info.act_bits) for info in infos if not info.path.endswith("[rest]")}


def error(network: PreparedUNet, decoder: nn.Module) -> float:
    sample = torch.randn(2, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        return float((convert_qdiff(network, "reference")(sample) - decoder(sample)).square().mean())


def test_predicted_noise_is_near_what_is_measured(prepared: PreparedUNet, batches: list[dict[str, Tensor]]) -> None:
    substitution, units = LayerSubstitution(prepared), units_of(prepared.graph_module)
    tensors = [torch.cat([each["sample"] for each in batches])]
    found, run = predicted(substitution, units, tensors), substitution.on(tensors)
    assert list(found) == [unit.path for unit in units]
    for unit in units:
        for choice in (unit.configured, Choice(8), Choice(8, wide=True)):
            if choice.wide and not unit.widens:
                continue
            measured = (
                run.with_quantized(unit, choice) - run.prediction
            ).square().sum() / run.prediction.square().sum()
            assert float(measured) / 2.5 < found[unit.path].noise(choice) < float(measured) * 2.5, (unit.path, choice)


def test_the_loud_layer_gets_more_bits_and_the_error_falls(
    prepared: PreparedUNet, decoder: nn.Module, batches: list[dict[str, Tensor]]
) -> None:
    found = finer(prepared, batches, Limits(bytes=0.1, work=0.0))
    before, after = bits(prepared), bits(found)
    assert all(after[path] >= before[path] for path in before)
    assert after[LOUD][0] > 4
    assert {wide for _, wide in after.values()} == {8, 16}, "the sample is wide, and nothing else is to be"
    assert [path for path in after if after[path][1] == 16] == ["first"]
    assert bits(prepared) == before, "what was given is as it was"
    assert error(found, decoder) < 0.7 * error(prepared, decoder)


def test_inputs_become_wide_where_work_allows_it(decoder: nn.Module, batches: list[dict[str, Tensor]]) -> None:
    prepared = calibrated(decoder, batches, QDiffConfig())
    found = finer(prepared, batches, Limits(work=0.3))
    wide = {path for path, (_, act_bits) in bits(found).items() if act_bits == 16} - {"first"}
    assert wide
    assert len(wide) <= 2  # of six alike, beside a first layer that counts as half of one
    assert {weight_bits for weight_bits, _ in bits(found).values()} == {8}
    assert error(found, decoder) < error(prepared, decoder)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_limits_hold(prepared: PreparedUNet, batches: list[dict[str, Tensor]], share: float) -> None:
    before = bits_of_layers(convert_qdiff(prepared, "reference").graph_module)
    after = bits_of_layers(convert_qdiff(finer(prepared, batches, Limits(share, share)), "reference").graph_module)
    assert before.weights <= after.weights <= before.weights * (1 + share)


def test_nothing_to_add_is_the_network_itself(prepared: PreparedUNet, batches: list[dict[str, Tensor]]) -> None:
    assert finer(prepared, batches, Limits(0.0, 0.0)) is prepared


def test_what_a_rule_keeps_in_float_stays_there(
    prepared: PreparedUNet, decoder: nn.Module, batches: list[dict[str, Tensor]]
) -> None:
    config = replace(W4, rules=(Rule(LOUD, quantize=False),))
    found = finer(calibrated(decoder, batches, config), batches, Limits(0.2))
    assert bits(found)[LOUD] == (0, 0)
    assert found.qconfig.rules[0] == config.rules[0]


def test_it_can_be_asked_where_gradients_are_off(prepared: PreparedUNet, batches: list[dict[str, Tensor]]) -> None:
    expected = finer(prepared, batches).qconfig
    with torch.no_grad():
        assert finer(prepared, batches).qconfig == expected
    with torch.inference_mode():
        recorded = [{"sample": each["sample"].clone()} for each in batches]
        assert finer(prepared, recorded).qconfig == expected
    assert all(parameter.grad is None for parameter in prepared.parameters())


def test_squares_are_small_and_from_all_images(prepared: PreparedUNet) -> None:
    images = [{"sample": torch.full((1, 4, 40, 30), float(number))} for number in range(6)]
    found = squares_of(prepared, images, count=8, side=16)
    assert {tuple(square.shape) for (square,) in found} == {(1, 4, 16, 16)}
    assert {float(square.mean()) for (square,) in found} == set(range(6))
    (whole,) = squares_of(prepared, images, count=1, side=64)[0]
    assert whole.shape == (1, 4, 40, 30)


def test_how_long_it_takes_is_told_by_the_size_of_images(prepared: PreparedUNet) -> None:
    small, large = (CalibrationData([{"sample": torch.zeros(1, 4, size, size)}]) for size in (16, 64))
    assert finer_passes(prepared, small) == 16 * finer_passes(prepared, large)


@pytest.mark.parametrize(
    ("limits", "message"),
    [({"bytes": -0.1}, "limit of bytes: -0.1 is no share"), ({"work": float("nan")}, "limit of work: nan is no share")],
)
def test_limits_that_are_none(limits: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Limits(**limits)


def test_bad_input_is_said(prepared: PreparedUNet, decoder: nn.Module, batches: list[dict[str, Tensor]]) -> None:
    with pytest.raises(CalibrationError, match="finer: there are no batches"):
        finer(prepared, [])
    with pytest.raises(CalibrationError, match="no data"):
        finer(prepare_qdiff(decoder, W4, batches[0]), batches)
    call: dict[str, Any] = {"x": torch.randn(2, 3, 8, 8), "t": torch.tensor([3.0, 3.0])}
    with pytest.raises(ConfigError, match="finer: it takes x, t, and squares are drawn of images alone.*tune"):
        finer(prepare(Shortcut().eval(), W4, call), [call])


def test_layers_that_hardly_matter_get_nothing(
    prepared: PreparedUNet, batches: list[dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEAST", 1.0)
    assert finer(prepared, batches, Limits(0.5, 0.5)) is prepared
