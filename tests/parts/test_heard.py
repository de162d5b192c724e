"""What parts are called with while trajectories are drawn, whoever draws them, and after a kill."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from controlled import DRAWN, PICTURE, controlled
from torch import Tensor, nn
from whole import STEPS, tiny_pipeline

from qdiff_fx import collect_calibration_data
from qdiff_fx.calibration import CalibrationData
from qdiff_fx.config import QDiffConfig
from qdiff_fx.distributed import Workers
from qdiff_fx.errors import CalibrationError
from qdiff_fx.sampling.listener import Listener, is_listened_to
from qdiff_fx.sources import SampleRequest, Source
from qdiff_fx.sources.heard import Heard
from qdiff_fx.sources.parts import Part, parts_of
from qdiff_fx.workflow import run
from qdiff_fx.workflow.job import Job, WorkFolder
from qdiff_fx.workflow.parts import wanted_parts

PROMPTS = ["a fish", "two birds", "a boat", "the moon", "a hill", "a lake"]


def parts(pipe: Any) -> list[Part]:
    return [part for word in ("vae", "encoder", "text") for part in parts_of(pipe, word)]


def draw(pipe: Any, count: int = 6, resume: Path | None = None) -> CalibrationData:
    """In groups of four."""
    return collect_calibration_data(
        pipe,
        num_samples=count,
        num_inference_steps=STEPS,
        seed=0,
        inputs={"prompt": PROMPTS[:count]},
        resume_dir=resume,
        progress=False,
    )


def same(a: CalibrationData, b: CalibrationData) -> bool:
    pairs = list(zip(a, b, strict=True))
    return all(torch.equal(x[name], y[name]) for x, y in pairs for name in x if isinstance(x[name], Tensor))


class TestListener:
    def test_zeros_of_the_size_that_images_have(self) -> None:
        decoder, heard = nn.Sequential(nn.Conv2d(4, 3, 1), nn.Upsample(scale_factor=(8, 4))), list[Tensor]()
        listener = Listener(decoder, heard.append)
        latents = torch.randn(2, 4, 5, 6)
        with torch.no_grad(), listener.listening():
            assert is_listened_to(decoder)
            first, second = decoder(latents), decoder(latents[:1, :, :3])
        assert not is_listened_to(decoder)
        assert torch.equal(first, decoder(latents))
        assert second.shape == (1, 3, 24, 24)
        assert not second.any()
        assert [len(each) for each in heard] == [2, 1]

    def test_another_forward_is_put_back(self) -> None:
        decoder = nn.Identity()
        decoder.forward = own = lambda x: x + 1  # type: ignore[method-assign]  # as accelerate does
        with Listener(decoder, lambda latents: None).listening():
            pass
        assert decoder.forward is own


def test_final_latents_and_tokens_are_heard_and_nothing_is_changed() -> None:
    pipe = tiny_pipeline()
    alone = draw(pipe)
    heard = Heard(pipe, parts(pipe))
    decoder, encoder, text = parts(pipe)
    with heard.listening():
        data = draw(pipe)
    assert same(alone, data)
    assert heard.images == 6
    expected = [
        pipe(PROMPTS[:4], num_inference_steps=STEPS, output_type="latent", generator=torch.Generator().manual_seed(0)),
        pipe(PROMPTS[4:], num_inference_steps=STEPS, output_type="latent", generator=torch.Generator().manual_seed(4)),
    ]
    found = torch.cat([batch["sample"] for batch in heard.data(decoder)])
    latents = torch.cat([each.images for each in expected]) / pipe.vae.config.scaling_factor
    with torch.no_grad():
        latents = pipe.vae.post_quant_conv(latents)
    assert torch.allclose(found.flatten(1).sum(1).sort()[0], latents.flatten(1).sum(1).sort()[0], rtol=1e-4)
    tokens = torch.cat([batch["input_ids"] for batch in heard.data(text)])
    assert len(tokens) == 6 + 4 + 2  # without a prompt four and two times
    pictures = heard.data(encoder, 2)
    assert sum(len(batch["sample"]) for batch in pictures) == 2
    with torch.no_grad():
        picture = pipe.vae.decoder(next(iter(heard.data(decoder, 2)))["sample"][:1]).clamp(-1, 1)
    assert torch.equal(next(iter(pictures))["sample"], picture)


def test_what_was_heard_before_a_kill_is_known_after_it(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    expected = Heard(pipe, parts(pipe))
    with expected.listening():
        draw(pipe)
    first, second = Heard(pipe, parts(pipe)), Heard(pipe, parts(pipe))
    with first.listening(tmp_path / "heard"):
        draw(pipe, 4, tmp_path / "one")
    with second.listening(tmp_path / "heard"):
        pipe(PROMPTS[4:], num_inference_steps=STEPS, generator=torch.Generator().manual_seed(4))
    for part in parts(pipe):
        assert same(expected.data(part), second.data(part))


def test_processes_tell_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_pipeline()
    both = [Heard(pipe, parts(pipe)) for _ in range(2)]
    for number, each in enumerate(both):
        with each.listening():
            pipe(PROMPTS[number], num_inference_steps=1)

    class Two(Workers):
        def __init__(self, other: Heard):
            super().__init__(0, 2)
            self.other = other

        def gather(
            self, report: Any, tensors: Mapping[str, Tensor] | None = None
        ) -> list[tuple[Any, dict[str, Tensor]]]:
            name = next(name for name, calls in both[0]._calls.items() if list(calls) == report[0])
            records = self.other._calls[name]
            description, theirs = CalibrationData(list(records.values())).to_tensors()
            return [(report, dict(tensors or {})), ([list(records), description], theirs)]

    both[0].share(Two(both[1]))
    assert both[0].images == 2
    assert len(both[0].data(parts(pipe)[2])) == 3  # either prompt, and none


def test_every_step_of_a_controlnet_is_heard_without_what_scales_its_results(tmp_path: Path) -> None:
    pipe = controlled()
    (part,) = parts_of(pipe, "controlnet")
    first, again, later = (Heard(pipe, [part]) for _ in range(3))
    assert first.images == 0
    inputs = DRAWN | {"controlnet_conditioning_scale": 0.4}
    with first.listening(tmp_path):
        collect_calibration_data(
            pipe, num_samples=2, num_inference_steps=STEPS, seed=0, inputs=inputs, resume_dir=tmp_path / "runs"
        )
    assert first.images == 4  # guided: two rows of each
    data = first.data(part)
    assert len(data) == STEPS
    assert {float(batch["timestep"][0]) for batch in data} == {float(each) for each in pipe.scheduler.timesteps}
    assert len(data.select("last", 1)) == 1
    assert not {"conditioning_scale", "guess_mode"} & set(data[0])
    assert len(data.spread(3)) == 3
    with later.listening(tmp_path):  # what a killed run heard is known again
        assert same(later.data(part), data)
    for found in (data, later.data(part)):
        assert len({id(batch["controlnet_cond"]) for batch in found}) == 1  # it is in memory once
    with again.listening():
        pipe("a fish", image=PICTURE, num_inference_steps=STEPS, guess_mode=True)
    assert {len(batch["sample"]) for batch in again.data(part)} == {1}  # without guidance's other half


def test_a_part_that_is_not_called() -> None:
    pipe = tiny_pipeline()
    heard = Heard(pipe, parts(pipe))
    with pytest.raises(CalibrationError, match="vae.decoder: the pipeline did not call it"):
        heard.data(parts(pipe)[0])


@pytest.mark.slow
def test_a_run_goes_on_with_all_its_parts_and_trajectories_alone_are_not_enough(tmp_path: Path) -> None:
    source = Source("", tiny_pipeline(), ["a fish"])
    network, wanted = wanted_parts(["vae", "text"])
    config = QDiffConfig(weight_rounding="nearest")
    job = Job(config, SampleRequest(2, 2), parts=wanted, network=network)
    alone = Job(config, SampleRequest(2, 2))
    source.calibration_data(alone.request, every=1, resume_dir=tmp_path / "samples", progress=False)

    def quantized(work: Path | None, samples: Path | None) -> list[Tensor]:
        folder = WorkFolder(work, source, job, samples=samples)
        found = run.calibrated(source, job, folder, progress=False)
        assert found is not None
        assert found.prepared is None
        assert [part.name for part in found.parts] == ["vae.decoder", "text_encoder"]
        return [tensor for each in found.parts.values() for tensor in each.state_dict().values()]

    with pytest.raises(CalibrationError, match="trajectories are there without what the other parts"):
        quantized(None, tmp_path / "samples")
    first, second = (quantized(tmp_path / "work", None) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert (tmp_path / "work" / "parts" / "vae.decoder").is_dir()
