"""Capture, calibration, recorder and loop agree which argument is the timestep."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import ModelMixin
from diffusers.pipelines.deprecated.wuerstchen import WuerstchenPrior
from torch import nn

from qdiff_fx.calibration import calibrate
from qdiff_fx.capture import capture
from qdiff_fx.capture.network import CapturedNetwork
from qdiff_fx.errors import CalibrationError
from qdiff_fx.observers import TimestepObserver
from qdiff_fx.signature.roles import sample_argument, timestep_argument, timestep_of_call

X = torch.zeros(2, 1, 4, 4)
WHOLE, PART = torch.tensor([3, 4]), torch.tensor([0.5, 0.25])


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ({"t": WHOLE}, "t"),
        ({"c": WHOLE, "t": WHOLE}, "t"),
        ({"class_labels": WHOLE, "timestep": 7}, "timestep"),
        ({"y": WHOLE, "noise_cond": PART}, "noise_cond"),
        ({"labels": WHOLE, "s": PART}, "s"),
        ({"c": WHOLE, "s": PART}, "s"),
        ({"c": PART}, "c"),
        ({"s": torch.tensor(3), "strength": 1.0}, "s"),
        ({"context": torch.zeros(2, 5, 8), "s": WHOLE}, "s"),
        ({"class_labels": WHOLE}, None),
        ({"mask": torch.ones(2, 4)}, None),
        ({"lengths": torch.tensor([1, 2, 3])}, None),
        ({"flags": torch.tensor([True, False])}, None),
        ({"flag": True}, None),
        ({"added.s": WHOLE}, None),
        ({"t": torch.zeros(2, 8), "sigma": PART}, "sigma"),
        ({}, None),
    ],
)
def test_by_name_then_by_place_and_value(others: dict[str, object], expected: str | None) -> None:
    assert timestep_argument({"x": X, **others}) == expected


def test_what_has_a_default_is_only_taken_by_name() -> None:
    assert timestep_argument({"x": X, "strength": 1.0}, required=["x"]) is None
    assert timestep_argument({"x": X, "sigma": 1.0}, required=["x"]) == "sigma"


def test_the_sample_may_come_after_the_timestep() -> None:
    assert sample_argument({"t": WHOLE, "x": X}) == "x"
    assert sample_argument({"x": X, "sample": X}) == "sample"
    assert sample_argument({}) is None


class LabelSecond(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, c, t):
        return self.conv(x) + c.view(-1, 1, 1, 1) + t.view(-1, 1, 1, 1)


def test_capture_agrees() -> None:
    arguments = {"x": X, "c": PART, "t": WHOLE}
    signature = capture(LabelSecond().eval(), arguments).signature
    assert signature.timestep is not None
    assert signature.timestep.name == timestep_argument(arguments) == timestep_of_call(LabelSecond(), arguments) == "t"


def test_a_captured_network_is_asked() -> None:
    """Its example had a fraction behind the label, this call has not: nothing is guessed anew."""
    network = CapturedNetwork.of(LabelSecond().eval(), {"x": X, "c": PART, "t": WHOLE})
    network.signature = replace(
        network.signature,
        inputs=tuple(replace(each, role="timestep" if each.name == "c" else "") for each in network.signature.inputs),
    )
    assert timestep_of_call(network, {"x": X, "c": PART, "t": WHOLE}) == "c"


def test_calibrate_checks_the_timestep_and_not_the_label() -> None:
    class Prepared(LabelSecond):
        def __init__(self) -> None:
            super().__init__()
            self.observer = TimestepObserver(4, 100)

        def forward(self, x, c, t):
            return super().forward(self.observer(x, t), c, t)

    labels = torch.tensor([500.0, 900.0])
    calibrate(Prepared(), [{"x": X, "c": labels, "t": WHOLE}], progress=False)
    with pytest.raises(CalibrationError, match=r"argument 't'"):
        calibrate(Prepared(), [{"x": X, "c": WHOLE, "t": torch.tensor([101, 101])}], progress=False)


class OfWuerstchensKind(ModelMixin):
    """Of diffusers, but with a time that is embedded in its own type."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def gen_r_embedding(self, r):
        return r[:, None, None, None].sin()

    def forward(self, x, r):
        return self.conv(x) + self.gen_r_embedding(r)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_time_that_is_embedded_in_the_type_it_comes_in(dtype):
    network = OfWuerstchensKind().to(dtype).eval()
    found = capture(network, {"x": torch.randn(2, 2, 4, 4, dtype=dtype), "r": torch.rand(2).to(dtype)})
    assert found.signature.timestep.dtype == dtype


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_wuerstchen_embeds_its_time_in_the_type_it_comes_in(dtype):
    network = WuerstchenPrior(c_in=2, c=16, c_cond=8, c_r=8, depth=1, nhead=2).to(dtype).eval()
    call = {"x": torch.randn(2, 2, 4, 4), "r": torch.rand(2), "c": torch.randn(2, 3, 8)}
    found = capture(network, {name: tensor.to(dtype) for name, tensor in call.items()})
    assert found.signature.timestep.dtype == dtype
