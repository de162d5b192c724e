"""Which sizes of a call stay open at capture, and what is said of those that do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdiff_fx import FixedSizeWarning, QDiffConfig, calibrate, convert_qdiff, load_qdiff, prepare_qdiff, save_qdiff
from qdiff_fx.capture import CapturedGraph, capture
from qdiff_fx.errors import CaptureError, InputError
from qdiff_fx.signature import CaptureMismatchError, DropIn, Size, TensorInput

Middle = Callable[[Tensor], Tensor]
BATCH, CHANNELS, IMAGE = 2, 8, 16


class Net(nn.Module):
    """conv, something in the middle, conv; `c` has rows for the middle to use."""

    def __init__(self, middle: Callable[..., Tensor], multiple: int = 1):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, CHANNELS, 3, padding=1), nn.Conv2d(CHANNELS, 3, 3, padding=1)
        self.middle, self.multiple = middle, multiple

    def forward(self, x: Tensor, t: Tensor, *conditioning: Tensor) -> Tensor:
        height, width = x.shape[2:]
        padded = F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple)) if self.multiple > 1 else x
        h = self.last(F.silu(self.middle(self.first(padded), *conditioning)))
        return h[..., :height, :width] + t[:, None, None, None] / 1000


class Conditioned(Net):
    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        return super().forward(x, t, c)


def call(batch: int = BATCH, height: int = IMAGE, width: int = IMAGE, **more: Tensor) -> dict[str, Tensor]:
    return {"x": torch.randn(batch, 3, height, width), "t": torch.rand(batch) * 1000, **more}


def crop(h: Tensor) -> Tensor:
    return F.pad(h[..., 1:-1, 1:-1], (1, 1, 1, 1))


def crop_all(h: Tensor) -> Tensor:
    return F.interpolate(h[..., 2:, 1:-1], size=h.shape[2:])


def every_other(h: Tensor) -> Tensor:
    return F.interpolate(h[..., ::2, ::2] + h[..., 1::2, 1::2], scale_factor=2)


def windows(h: Tensor) -> Tensor:
    n, c, height, width = h.shape
    parts = h.view(n, c, height // 4, 4, width // 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, 4, 4)
    parts = parts - parts.mean((2, 3), keepdim=True)
    return parts.view(n, height // 4, width // 4, c, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(h.shape)


def halves(h: Tensor) -> Tensor:
    return torch.cat([*reversed(h.chunk(2, dim=2))], dim=2)


def pad_where_needed(h: Tensor) -> Tensor:
    height, width = h.shape[2:]
    if height % 4 or width % 4:
        h = F.pad(h, (0, -width % 4, 0, -height % 4))
    return F.interpolate(F.avg_pool2d(h, 4), scale_factor=4)[..., :height, :width]


HEIGHTS = [Size("height", multiple) for multiple in (1, 2, 4)]
OPEN: dict[str, tuple[Net, Size]] = {
    "crop": (Net(crop), HEIGHTS[0]),
    "crop to another size": (Net(crop_all), HEIGHTS[0]),
    "padded to a multiple": (Net(F.relu, multiple=8), HEIGHTS[0]),
    "strided slices": (Net(every_other), HEIGHTS[1]),
    "functional pooling": (Net(lambda h: F.interpolate(F.max_pool2d(h, 2), scale_factor=2)), HEIGHTS[1]),
    "chunks": (Net(halves), HEIGHTS[1]),
    "windows": (Net(windows), HEIGHTS[2]),
    "padded where needed": (Net(pad_where_needed), HEIGHTS[2]),
}


@pytest.mark.parametrize("name", OPEN)
def test_sizes_stay_open(name: str) -> None:
    model, height = OPEN[name]
    graph = capture(model.eval(), call())
    assert graph.signature.sample.dims == (Size("batch"), 3, height, Size("width", height.multiple))
    assert graph.signature.fixed_sizes == {}
    ours = DropIn(graph.module, graph.signature)
    for batch, down, across in ((1, 1, 3), (3, 5, 2), (2, 13, 24), (4, 6, 1)):
        inputs = call(batch, down * max(height.multiple, 4), across * max(height.multiple, 4))
        torch.testing.assert_close(ours(**inputs), model(**inputs))


def test_any_size_is_padded_as_the_network_does() -> None:
    model = Net(F.relu, multiple=8).eval()
    graph = capture(model, call())
    for height, width in ((16, 8), (13, 15), (1, 1), (17, 24)):
        inputs = call(1, height, width)
        torch.testing.assert_close(DropIn(graph.module, graph.signature)(**inputs), model(**inputs))


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_a_cropping_network_is_quantized_at_any_size(backend: str) -> None:
    model = Net(crop).eval()
    prepared = prepare_qdiff(model, QDiffConfig(), call())
    with torch.no_grad():
        calibrate(prepared, [call() for _ in range(4)], progress=False)
        quantized = convert_qdiff(prepared, backend)
        for inputs in (call(3, 24, 8), call(1, 5, 9)):
            expected = model(**inputs)
            assert (quantized(**inputs) - expected).square().sum() < 5e-3 * expected.square().sum()


class Table(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, CHANNELS, size, size))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.table[..., : h.shape[2], : h.shape[3]]


class Tiles(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return torch.cat([F.relu(h[:, :, at : at + 8]) for at in range(0, h.shape[2], 8)], dim=2)


def coordinates(h: Tensor) -> Tensor:
    return h * torch.linspace(-1, 1, h.shape[2])[:, None]


class Picky(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        if h.shape[2] != IMAGE:
            raise ValueError(f"only images of {IMAGE} pixels")
        return h


LINE = r"\(test_open_sizes.py:\d+\)"
FIXED: dict[str, tuple[nn.Module | Middle, str]] = {
    "positions": (Table(IMAGE), f"middle {LINE} fails.*RuntimeError"),
    "a slice of positions": (Table(64), f"middle {LINE} goes by whether height <= 64"),
    "tiles": (Tiles(), f"middle {LINE} takes it for a plain number"),
    "coordinates": (coordinates, f"{LINE} takes it for a plain number"),
    "its own check": (Picky(), f"middle {LINE} fails.*ValueError: only images of 16 pixels"),
}


@pytest.mark.parametrize("name", FIXED)
def test_what_becomes_fixed_is_said_with_its_place(name: str) -> None:
    middle, why = FIXED[name]
    model = Net(middle).eval()
    with pytest.warns(FixedSizeWarning, match=rf"(?s)x\[2\] = 16.*because.*{why}"):
        prepared = prepare_qdiff(model, QDiffConfig(), call())
    assert prepared.signature.sample.dims[:3] == (Size("batch"), 3, IMAGE)
    capture_report = prepared.reports[0]
    assert capture_report.name == "Capture"
    assert {refusal.node: refusal.reason for refusal in capture_report.refused} == prepared.signature.fixed_sizes
    with pytest.raises(CaptureMismatchError, match=f"has size 24 in dimension 2, which is fixed because.*{why}"):
        prepared(**call(height=24, width=24))
    inputs = call(3)
    torch.testing.assert_close(prepared(**inputs), model(**inputs))


def test_a_saved_network_remembers_which_axis_is_fixed(tmp_path) -> None:
    prepared = prepare_qdiff(Net(Tiles()).eval(), QDiffConfig(), call())
    assert prepared.signature.sample.dims == (Size("batch"), 3, IMAGE, Size("width"))
    calibrate(prepared, [call()], progress=False)
    save_qdiff(convert_qdiff(prepared, "reference"), tmp_path / "saved")
    loaded = load_qdiff(tmp_path / "saved", "reference")
    assert loaded.signature.fixed_sizes == prepared.signature.fixed_sizes
    assert "fixed: x[2] = 16, because middle" in str(loaded.explain())


def test_nothing_is_said_where_all_is_open(recwarn) -> None:
    prepared = prepare_qdiff(Net(F.relu).eval(), QDiffConfig(), call())
    assert not [each for each in recwarn if issubclass(each.category, FixedSizeWarning)]
    assert "Capture" not in [report.name for report in prepared.reports]


class TestInterrupts:
    """They are nothing that a network does: nothing is concluded from them."""

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
    @pytest.mark.parametrize("run", [1, 2])
    def test_pass(self, error: type[BaseException], run: int) -> None:
        runs = []

        def interrupted(h: Tensor) -> Tensor:
            runs.append(h)
            if len(runs) == run:
                raise error
            return h

        with pytest.raises(error):
            capture(Net(interrupted).eval(), call())
        assert len(runs) == run

    def test_errors_of_the_network_name_its_module(self) -> None:
        class Broken(nn.Module):
            def forward(self, h: Tensor) -> Tensor:
                raise KeyError("weights")

        with pytest.raises(CaptureError, match="^middle: .*KeyError: 'weights'"):
            capture(Net(Broken()).eval(), call())


def per_sample(h: Tensor, c: Tensor) -> Tensor:
    return h + c[:, :CHANNELS, None, None]


def summed(h: Tensor, c: Tensor) -> Tensor:
    return h + c[:, :CHANNELS].sum(0)[:, None, None]


def a_weight(h: Tensor, c: Tensor) -> Tensor:
    return F.conv2d(h, c.view(BATCH, CHANNELS, 1, 1))[:, [0, 1] * 4]


def captured_with(middle: Callable[..., Tensor]) -> tuple[nn.Module, CapturedGraph]:
    model = Conditioned(middle).eval()
    return model, capture(model, call(c=torch.randn(BATCH, CHANNELS)))


class TestRowsThatAreAsManyAsSamples:
    def spec(self, graph: CapturedGraph) -> TensorInput:
        return next(spec for spec in graph.signature.inputs if spec.name == "c")

    def test_of_samples(self) -> None:
        _, graph = captured_with(per_sample)
        assert self.spec(graph).dims == (Size("batch"), CHANNELS)
        one = call(3, c=torch.randn(2, CHANNELS))
        with pytest.raises(
            CaptureMismatchError, match="'c': batch is 2, but 3 goes with x.*nothing to do with the samples"
        ):
            DropIn(graph.module, graph.signature)(**one)

    @pytest.mark.parametrize("middle", [summed, lambda h, c: h], ids=["summed", "unused"])
    def test_of_a_table_of_any_length(self, middle: Callable[..., Tensor]) -> None:
        model, graph = captured_with(middle)
        assert self.spec(graph).dims == (Size("c.rows"), CHANNELS)
        assert graph.signature.sample.dims[0] == Size("batch")
        for rows in (1, 3, 7):
            inputs = call(3, c=torch.randn(rows, CHANNELS))
            torch.testing.assert_close(DropIn(graph.module, graph.signature)(**inputs), model(**inputs))

    def test_of_samples_that_only_unread_results_have_to_do_with(self) -> None:
        def unread(h: Tensor, c: Tensor) -> Tensor:
            _ = h.mean((2, 3)) + c
            return h

        model, graph = captured_with(unread)
        assert graph.signature.sample.dims[0] == self.spec(graph).dims[0] == Size("batch")
        inputs = call(3, c=torch.randn(3, CHANNELS))
        torch.testing.assert_close(DropIn(graph.module, graph.signature)(**inputs), model(**inputs))

    def test_of_an_unread_image_that_is_twice_something(self, tmp_path: Path) -> None:
        model = Conditioned(lambda h, c: F.interpolate(F.avg_pool2d(h, 2), scale_factor=2)).eval()
        inputs = call(c=torch.randn(BATCH, 3, IMAGE, IMAGE))
        prepared = prepare_qdiff(model, QDiffConfig(), inputs)
        assert Size("height", 2) in prepared.signature.sample.dims
        calibrate(prepared, [inputs], progress=False)
        save_qdiff(convert_qdiff(prepared, "reference"), tmp_path / "network")
        load_qdiff(tmp_path / "network")(**inputs)

    def test_of_a_table_of_this_length(self) -> None:
        model, graph = captured_with(a_weight)
        assert self.spec(graph).dims == (BATCH, CHANNELS)
        assert graph.signature.sample.dims == (Size("batch"), 3, Size("height"), Size("width"))
        assert list(graph.signature.fixed_sizes) == ["c[0] = 2"]
        inputs = call(3, 8, 24, c=torch.randn(BATCH, CHANNELS))
        torch.testing.assert_close(DropIn(graph.module, graph.signature)(**inputs), model(**inputs))

    def test_a_table_is_not_cut_by_timestep_bins(self) -> None:
        model = Conditioned(summed).eval()
        table = torch.randn(BATCH, CHANNELS)
        prepared = prepare_qdiff(model, QDiffConfig(timestep_bins=4, act_granularity="timestep"), call(c=table))
        with torch.no_grad():
            calibrate(prepared, [call(8, c=table) for _ in range(4)], progress=False)
            quantized = convert_qdiff(prepared, "native")
            inputs = call(BATCH, c=table) | {"t": torch.tensor([10.0, 900.0])}
            expected = model(**inputs)
            assert (quantized(**inputs) - expected).square().sum() < 5e-3 * expected.square().sum()


class TestWithoutABatch:
    def test_in_a_call(self) -> None:
        graph = capture(Net(F.relu).eval(), call())
        with pytest.raises(InputError, match=r"'x': has 3 dimensions.*Add the batch dimension: x\[None\]"):
            DropIn(graph.module, graph.signature)(torch.randn(3, IMAGE, IMAGE), 5)

    @pytest.mark.parametrize("shape", [(3, IMAGE, IMAGE), (3, IMAGE), (3, 4, IMAGE, IMAGE)], ids=["2d", "1d", "3d"])
    def test_in_the_example(self, shape: tuple[int, ...]) -> None:
        convolution: Any = {2: nn.Conv1d, 3: nn.Conv2d, 4: nn.Conv3d}[len(shape)]
        with pytest.raises(
            CaptureError, match=r"'input': is a single one of shape.*Pass a batch of one, input\[None\]"
        ):
            capture(nn.Sequential(convolution(3, 4, 3)).eval(), {"input": torch.randn(shape)})


class OfFrames(nn.Module):
    """Clips [B, 3, F, H, W] with a text for each frame of each clip, [B·F, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.text, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(4, 8), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        h = self.first(x.permute(0, 2, 1, 3, 4).flatten(0, 1)) + self.text(c)[:, :, None, None]
        h = self.last(F.silu(h)).unflatten(0, (x.shape[0], x.shape[2])).permute(0, 2, 1, 3, 4)
        return h + t[:, None, None, None, None] / 1000


def clips(batch: int) -> dict[str, Tensor]:
    return {"x": torch.randn(batch, 3, 5, 8, 8), "t": torch.rand(batch) * 1000, "c": torch.randn(batch * 5, 4)}


@torch.no_grad()
@pytest.mark.parametrize("backend", ["reference", "native"])
def test_rows_that_are_frames_go_with_their_samples(backend: str, tmp_path: Path) -> None:
    network, example = OfFrames().eval(), clips(2)
    prepared = prepare_qdiff(network, QDiffConfig(timestep_bins=4), example)
    assert prepared.signature.inputs[2].dims[0] == Size("batch", 5)
    calibrate(prepared, [clips(2) for _ in range(8)], progress=False)
    save_qdiff(convert_qdiff(prepared, backend), tmp_path / "net")
    loaded = load_qdiff(tmp_path / "net", backend)
    for batch in (1, 2, 3):
        call = clips(batch)  # at several parts of the schedule, so that it is cut into them
        expected, found = network(**call), loaded(**call)
        assert 20 * torch.log10(expected.norm() / (expected - found).norm()) > 25
    with pytest.raises(InputError, match="'c': batch is 10, but 15 goes with x"):
        loaded(**clips(3) | {"c": torch.randn(10, 4)})


def test_a_table_of_twice_as_many_rows_as_samples_is_no_frames() -> None:
    class Table(Net):
        def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
            return super().forward(x, t) * c.mean()

    graph = capture(Table(F.relu).eval(), call(c=torch.randn(2 * BATCH, 3)))
    assert graph.signature.inputs[2].dims == (Size("c.rows"), 3)
