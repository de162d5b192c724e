"""`quantize` and `calibrating`: what is given comes back quantized, or as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

import qdiff_fx
from qdiff_fx import CalibrationData, QDiffConfig, QuantizedUNet, collect_calibration_data
from qdiff_fx.bundled.captions import captions
from qdiff_fx.errors import CalibrationError, ConfigError, QDiffError
from qdiff_fx.sources import SampleRequest
from qdiff_fx.workflow import convert, enough, one_call
from tests.pipelines.parts import tiny_pipeline

pytestmark = pytest.mark.usefixtures("quickly")
QUIET = {"steps": 2, "progress": False}


def unconditional() -> DDIMPipeline:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(16,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=8,
        add_attention=False,
    )
    pipe = DDIMPipeline(unet.eval(), DDIMScheduler(num_train_timesteps=500))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sqnr(float_result: torch.Tensor, result: torch.Tensor) -> float:
    return float(20 * torch.log10(float_result.norm() / (float_result - result).norm()))


def sees(unet: Any) -> torch.Tensor:
    """What it predicts of noise at a middle timestep."""
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        prediction: torch.Tensor = unet(x, 250).sample
    return prediction


@pytest.fixture
def pipe() -> DDIMPipeline:
    return unconditional()


def test_a_pipeline_comes_back_with_a_quantized_network(pipe: DDIMPipeline) -> None:
    expected = sees(pipe.unet)
    found = qdiff_fx.quantize(pipe, "w8a8", budget=None, **QUIET)
    assert found is pipe
    assert isinstance(pipe.unet, QuantizedUNet)
    assert pipe.unet.backend == "native"
    assert pipe.unet.qconfig.num_train_timesteps == 500
    assert sqnr(expected, sees(pipe.unet)) > 25
    assert pipe._progress_bar_config == {"disable": True}
    for given in (pipe, pipe.unet):
        with pytest.raises(QDiffError, match="is a QuantizedUNet already"):
            qdiff_fx.quantize(given, **QUIET)


def test_captions_are_what_it_is_calibrated_on_where_nobody_gives_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, request = tiny_pipeline(), SampleRequest(3, 2)
    for given, drawn in ((None, list(captions()[:3])), (["a", "b"], ["a", "b", "a"]), ("a", ["a", "a", "a"])):
        assert one_call._source(pipe, given)[1].subjects(request) == {"prompt": drawn}
    monkeypatch.setattr(enough, "usual_trajectories", lambda steps: 2)
    qdiff_fx.quantize(pipe, QDiffConfig(weight_bits=4, timestep_bins=2), budget=None, parts="unet", **QUIET)
    assert pipe.unet.qconfig.timestep_bins == 2


def test_a_pipeline_with_a_schedule_is_calibrated_along_it(pipe: DDIMPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = qdiff_fx.optimize_schedule(pipe, 1, 2, out_of=5, progress=False)
    pipe.scheduler = qdiff_fx.with_schedule(pipe.scheduler, schedule)
    seen = []
    calibrate = one_call.calibrated

    def watched(source: Any, job: Any, *arguments: Any, **more: Any) -> Any:
        seen.append(source.calibration_data(job.request, every=1))
        return calibrate(source, job, *arguments, **more)

    monkeypatch.setattr(one_call, "calibrated", watched)
    qdiff_fx.quantize(pipe, "w8a8", budget=None, progress=False)
    assert pipe.unet.schedule == schedule
    assert {float(batch["timestep"][0]) for batch in seen[0]} == set(schedule.timesteps)
    pipe(num_inference_steps=2)


def test_a_budget_chooses_how_much_is_looked_at(pipe: DDIMPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = []
    original = one_call.calibrated

    def keeping(*given: Any, **more: Any) -> Any:
        jobs.append(original(*given, **more))
        return jobs[-1]

    monkeypatch.setattr(one_call, "calibrated", keeping)
    monkeypatch.setattr(enough, "MOST_TRAJECTORIES", 8)
    qdiff_fx.quantize(pipe, budget="1h", **QUIET)
    assert jobs[0].job.request.count == 8
    with pytest.raises(ConfigError, match="budget: .* are left for what takes"):
        qdiff_fx.quantize(unconditional(), budget=1e-3, **QUIET)


def test_the_networks_own_inputs_serve_for_a_network_alone(pipe: DDIMPipeline) -> None:
    data = collect_calibration_data(
        pipe.unet,
        scheduler=pipe.scheduler,
        num_samples=4,
        num_inference_steps=2,
        seed=0,
        progress=False,
    )
    expected = sees(pipe.unet)
    alone = qdiff_fx.quantize(pipe.unet, "w8a8", data, **QUIET)
    assert isinstance(alone, QuantizedUNet)
    assert alone.qconfig.num_train_timesteps == 500
    assert sqnr(expected, sees(alone)) > 25
    assert one_call._source(pipe, data)[0].pipe is pipe


def test_what_was_recorded_is_spread_to_fit_a_budget(pipe: DDIMPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    data = collect_calibration_data(pipe, num_samples=6, num_inference_steps=5, seed=0, progress=False)
    _, source = one_call._source(pipe, data)
    request = one_call._request(source, None, None, 0, budgeted=True)
    assert (request.count, request.steps) == (6, 5)
    assert not source.draws
    fewer = source.calibration_data(SampleRequest(2, 5), every=1)
    assert sum(len(batch["sample"]) for batch in fewer) == 10
    assert {int(batch["timestep"][0]) for batch in fewer} == {int(batch["timestep"][0]) for batch in data}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": "w9a8"}, "weight_bits: 9 bits are not supported"),
        ({"bits": "4 bit"}, "bits: '4 bit' says no bits"),
        ({"bits": 4}, "bits: 4 says no bits"),
        ({"budget": "soon"}, "budget: 'soon' is not an amount"),
        ({"data": ["a fish"]}, "data: DDIMPipeline takes no prompts"),
        ({"data": []}, "data: they are no prompts"),
        ({"data": [torch.ones(3)]}, "data: they are no prompts"),
        ({"data": CalibrationData([])}, "data: there is no call of the network in it"),
        ({"backend": "fast"}, "fast"),
    ],
)
def test_what_cannot_work_is_said_before_any_work(pipe: DDIMPipeline, arguments: dict[str, Any], message: str) -> None:
    unet = pipe.unet
    with pytest.raises(QDiffError, match=message):
        qdiff_fx.quantize(pipe, **arguments, **QUIET)
    assert pipe.unet is unet


def test_a_network_alone_needs_data(pipe: DDIMPipeline) -> None:
    for data in (None, ["a fish"]):
        with pytest.raises(ConfigError, match="a network alone does not say how it is sampled"):
            qdiff_fx.quantize(pipe.unet, data=data, **QUIET)


def test_a_failure_leaves_the_pipeline_as_it_was(pipe: DDIMPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise QDiffError("no more memory")

    monkeypatch.setattr(convert, "convert_qdiff", failing)
    unet, expected = pipe.unet, sees(pipe.unet)
    with pytest.raises(QDiffError, match="no more memory"):
        qdiff_fx.quantize(pipe, budget=None, **QUIET)
    assert pipe.unet is unet
    assert torch.equal(sees(unet), expected)
    assert pipe._progress_bar_config == {"disable": True}


class TestCalibrating:
    def test_a_loop_of_ones_own(self, pipe: DDIMPipeline) -> None:
        expected = sees(pipe.unet)
        with qdiff_fx.calibrating(pipe) as c:
            for _ in range(2):
                pipe(batch_size=2, num_inference_steps=2)
            assert len(c.data) == 4
        pipe(batch_size=1, num_inference_steps=2)
        assert len(c.data) == 4
        pipe.unet = c.convert("w8a8", progress=False)
        assert pipe.unet.qconfig.num_train_timesteps == 500
        assert sqnr(expected, sees(pipe.unet)) > 25

    def test_converting_ends_recording(self, pipe: DDIMPipeline) -> None:
        with qdiff_fx.calibrating(pipe.unet) as c:
            pipe(batch_size=1, num_inference_steps=2)
            quantized = c.convert(progress=False)
        assert quantized.qconfig.weight_bits == 4
        assert not pipe.unet._forward_pre_hooks

    def test_what_is_written_to_afterwards_was_copied_and_conditioning_is_kept_once(self) -> None:
        class Net(torch.nn.Module):
            def forward(self, sample: torch.Tensor, timestep: torch.Tensor, pair: Any) -> torch.Tensor:
                return sample

        net, x, pair = Net(), torch.zeros(1, 2), [torch.ones(1, 3), None]
        with qdiff_fx.calibrating(net) as c:
            for step in range(2):
                net(x, torch.tensor([step]), pair=pair)
                x += 1
        assert [float(call["sample"][0, 0]) for call in c._calls] == [0, 1]
        assert c._calls[0]["pair"][0] is c._calls[1]["pair"][0]

    def test_too_much_is_refused_and_nothing_is_an_error(self, pipe: DDIMPipeline) -> None:
        with (
            pytest.raises(CalibrationError, match="the cap is 10,000. Record fewer images"),
            qdiff_fx.calibrating(pipe, memory_cap_bytes=10_000),
        ):
            pipe(batch_size=4, num_inference_steps=2)
        assert not pipe.unet._forward_pre_hooks
        with qdiff_fx.calibrating(pipe) as c:
            pass
        with pytest.raises(CalibrationError, match="the network was not called"):
            c.convert()
        with pytest.raises(CalibrationError, match="int has none of unet"), qdiff_fx.calibrating(3):
            pass


def test_the_captions_are_plain_and_different() -> None:
    assert len(captions()) == len(set(captions())) > 64
    assert all(each.isascii() and each == each.strip() for each in captions())
