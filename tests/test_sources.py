"""Every kind of SOURCE loads, draws what is asked for, and says clearly when it cannot."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel
from torch import nn

from qdiff_fx.bundled.captions import captions
from qdiff_fx.errors import CalibrationError, ConfigError
from qdiff_fx.schedules import with_schedule
from qdiff_fx.schedules.walk import uniform
from qdiff_fx.sources import PythonFileSource, SampleRequest, Source, SourceError, resolve
from qdiff_fx.sources.pipeline import half_alone
from qdiff_fx.sources.python_file import import_file

TINY = """
    import torch
    from diffusers import DDIMScheduler, UNet2DModel

    def load_unet():
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
        )

    def make_scheduler(steps):
        scheduler = DDIMScheduler(num_train_timesteps=300)
        scheduler.set_timesteps(steps)
        return scheduler
"""
HANDWRITTEN = """
    import torch
    from torch import nn
    from diffusers import DDIMScheduler

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x, t, label=None):
            shift = 0 if label is None else label.view(-1, 1, 1, 1)
            return self.conv(x) + t / 1000 + shift

    def load_unet():
        torch.manual_seed(0)
        return Net()

    def make_scheduler(steps):
        scheduler = DDIMScheduler(num_train_timesteps=1000)
        scheduler.set_timesteps(steps)
        return scheduler
"""


def write(folder: Path, text: str, name: str = "model.py") -> Path:
    path = folder / name
    path.write_text(dedent(text))
    return path


def tiny_unet() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )


@pytest.fixture
def tiny(tmp_path: Path) -> PythonFileSource:
    source = resolve(str(write(tmp_path, TINY)))
    assert isinstance(source, PythonFileSource)
    return source


class TestDraw:
    def test_an_image_does_not_depend_on_its_batch(self, tiny: PythonFileSource) -> None:
        request = SampleRequest(count=5, steps=2, seed=3)
        whole = tiny.sample(tiny.unet, request)
        parts = torch.cat([tiny.sample(tiny.unet, part) for part in request.batches(2)])
        assert torch.allclose(whole, parts, atol=1e-5)

    def test_batches_cover_the_numbers_once(self) -> None:
        batches = SampleRequest(count=5, steps=2, first=10).batches(2)
        assert [list(batch.numbers) for batch in batches] == [[10, 11], [12, 13], [14]]

    def test_seeds_and_numbers_give_different_noise(self) -> None:
        requests = [SampleRequest(2, 1, seed=0), SampleRequest(2, 1, seed=1)]
        noise = [torch.randn(4, generator=g) for request in requests for g in request.generators()]
        assert len({tuple(n.tolist()) for n in noise}) == 4

    @pytest.mark.parametrize("bad", [{"count": 0, "steps": 1}, {"count": 1, "steps": 0}])
    def test_nothing_to_draw_is_an_error(self, bad: dict[str, int]) -> None:
        with pytest.raises(ConfigError, match="0 is not a positive number"):
            SampleRequest(**bad)

    def test_a_batch_holds_something(self) -> None:
        with pytest.raises(ConfigError, match="batch_size"):
            SampleRequest(1, 1).batches(0)


class TestPythonFile:
    def test_it_draws_images_in_range(self, tiny: PythonFileSource) -> None:
        images = tiny.sample(tiny.unet, SampleRequest(2, 2))
        assert images.shape == (2, 3, 8, 8)
        assert images.abs().max() <= 1
        assert tiny.num_train_timesteps == 300
        assert not tiny.unet.training
        assert tiny.labels(SampleRequest(2, 2)) is None

    def test_the_identifier_resolves_to_the_same_network(self, tiny: PythonFileSource) -> None:
        again = resolve(tiny.identifier)
        assert Path(tiny.identifier).is_absolute()
        assert torch.equal(again.sample(again.unet, SampleRequest(1, 2)), tiny.sample(tiny.unet, SampleRequest(1, 2)))

    def test_a_trajectory_keeps_every_call(self, tiny: PythonFileSource) -> None:
        trajectory = tiny.trajectory(SampleRequest(2, 3))
        assert [int(step.timestep) for step in trajectory.steps] == [200, 100, 0]
        assert torch.equal(trajectory.final, tiny.sample(tiny.unet, SampleRequest(2, 3)))
        with torch.no_grad():
            for step in trajectory.steps:
                assert torch.equal(tiny.unet(step.sample, step.timestep).sample, step.eps)

    def test_another_network_can_be_put_in_its_place(self, tiny: PythonFileSource) -> None:
        class Zero(nn.Module):
            def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
                return torch.zeros_like(x)

        assert not torch.equal(tiny.sample(Zero(), SampleRequest(1, 2)), tiny.sample(tiny.unet, SampleRequest(1, 2)))

    def test_example_inputs_are_named_as_forward_names_them(self, tmp_path: Path, tiny: PythonFileSource) -> None:
        assert list(tiny.example_inputs()) == ["sample", "timestep"]
        text = HANDWRITTEN + "\n    SAMPLE_SHAPE = (1, 4, 6)\n"
        handwritten = resolve(str(write(tmp_path, text, "hand.py")))
        inputs = handwritten.example_inputs(3)
        assert list(inputs) == ["x", "t"]
        assert inputs["x"].shape == (3, 1, 4, 6)

    def test_the_network_does_not_run_for_example_inputs(self, tiny: PythonFileSource) -> None:
        ran: list[object] = []
        with tiny.unet.register_forward_hook(lambda *call: ran.append(call)):
            tiny.example_inputs()
        assert not ran
        assert not tiny.unet._forward_pre_hooks

    def test_calibration_data_are_named_as_forward_names_them(self, tmp_path: Path, tiny: PythonFileSource) -> None:
        text = HANDWRITTEN + "\n    SAMPLE_SHAPE = (1, 4, 4)\n"
        handwritten = resolve(str(write(tmp_path, text, "hand.py")))
        for source, names in ((tiny, ["sample", "timestep"]), (handwritten, ["x", "t"])):
            data = source.calibration_data(SampleRequest(3, steps=4), every=2)
            assert [list(batch) for batch in data] == [names] * 2
            assert [len(batch[names[0]]) for batch in data] == [3, 3]
            assert all(batch[names[1]].shape == (len(batch[names[0]]),) for batch in data)

    def test_conditioning_reaches_the_network(self, tmp_path: Path) -> None:
        text = HANDWRITTEN + (
            "\n    SAMPLE_SHAPE = (1, 4, 4)\n"
            "\n    def make_conditioning(count):\n        return {'label': torch.full((count,), 0.5)}\n"
        )
        source = resolve(str(write(tmp_path, text)))
        trajectory = source.trajectory(SampleRequest(2, 2))
        assert trajectory.conditioning["label"].tolist() == [0.5, 0.5]

    def test_recorded_data_of_another_text_are_not_resumed(self, tmp_path: Path) -> None:
        request = SampleRequest(2, steps=2)
        for number in (1, 1, 2):
            text = HANDWRITTEN + (
                "\n    SAMPLE_SHAPE = (1, 4, 4)\n"
                f"\n    def make_conditioning(count):\n        return {{'label': torch.full((count,), {number}.0)}}\n"
            )
            source = resolve(str(write(tmp_path, text)))
            if number == 1:
                source.calibration_data(request, every=1, resume_dir=tmp_path / "kept")
        with pytest.raises(CalibrationError, match=r"other settings \(source\)"):
            source.calibration_data(request, every=1, resume_dir=tmp_path / "kept")

    def test_neighbouring_files_can_be_imported_while_it_is_executed_only(self, tmp_path: Path) -> None:
        write(tmp_path, "VALUE = 7", "qdiff_neighbour.py")
        before = list(sys.path)
        assert import_file(write(tmp_path, "from qdiff_neighbour import VALUE")).VALUE == 7
        assert sys.path == before

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("def make_scheduler(steps): ...", r"model\.py: it defines no load_unet\(\)"),
            ("def load_unet(): ...", r"model\.py: it defines no make_scheduler\(\)"),
            ("import no_such_module_anywhere", r"model\.py: it cannot be imported \(ModuleNotFoundError"),
            ("def f(:", r"model\.py: it cannot be imported \(SyntaxError"),
            ("def load_unet(): return 3\ndef make_scheduler(steps): ...", "returned int, not an nn.Module"),
            ("def load_unet(): raise OSError('gone')\ndef make_scheduler(steps): ...", r"load_unet\(\) failed"),
        ],
    )
    def test_a_defective_file_is_named(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(SourceError, match=message):
            resolve(str(write(tmp_path, text)))

    def test_a_network_without_config_must_tell_its_shape(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="SAMPLE_SHAPE = "):
            resolve(str(write(tmp_path, HANDWRITTEN)))

    def test_a_scheduler_must_be_a_scheduler(self, tmp_path: Path) -> None:
        text = "import torch\ndef load_unet(): return torch.nn.Identity()\ndef make_scheduler(steps): return object()"
        with pytest.raises(SourceError, match="no diffusers scheduler with its timesteps set"):
            resolve(str(write(tmp_path, text)))


class TestPipeline:
    def test_a_folder_is_loaded_and_drawn_with(self, tmp_path: Path) -> None:
        DDPMPipeline(tiny_unet(), DDIMScheduler(num_train_timesteps=50)).save_pretrained(tmp_path / "pipe")
        source = resolve(str(tmp_path / "pipe"))
        assert isinstance(source, Source)
        assert source.num_train_timesteps == 50
        images = source.sample(source.unet, SampleRequest(2, 2))
        assert images.shape == (2, 3, 8, 8)
        assert images.abs().max() <= 1
        assert Path(source.identifier).is_absolute()

    def test_weights_that_are_there_in_float16_alone_are_taken(self, tmp_path: Path) -> None:
        half = DDPMPipeline(tiny_unet().half(), DDIMScheduler())
        half.save_pretrained(tmp_path, variant="fp16")
        source = resolve(str(tmp_path))
        assert {each.dtype for each in source.unet.parameters()} == {torch.float32}
        for mine, theirs in zip(source.unet.parameters(), half.unet.parameters()):
            assert torch.equal(mine, theirs.float())

    @pytest.mark.parametrize(
        ("files", "alone"),
        [
            (["unet/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.safetensors"], True),
            (["unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "unet/config.json"], True),
            (["unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin"], False),
            (["unet/diffusion_pytorch_model.safetensors", "README.fp16.md"], False),
            ([], False),
        ],
    )
    def test_which_components_have_float16_alone(self, files: list[str], alone: bool) -> None:
        assert half_alone(files) is alone

    def test_the_pipeline_keeps_its_own_network(self) -> None:
        pipe = DDPMPipeline(tiny_unet(), DDIMScheduler())
        source, other = Source("pipe", pipe), tiny_unet()
        source.sample(other, SampleRequest(1, 1))
        assert pipe.unet is source.unet
        with pytest.raises(TypeError):
            source.sample(FailingUNet(), SampleRequest(1, 1))
        assert pipe.unet is source.unet

    def test_one_whose_scheduler_takes_the_steps_of_a_schedule_shows_an_example_and_draws(self) -> None:
        own = DDIMScheduler()
        pipe = DDPMPipeline(tiny_unet(), with_schedule(own, uniform(own, 8).part([0, 3, 5])))
        source, walking = Source("pipe", pipe), pipe.scheduler
        assert source.example_inputs(2)["sample"].shape[0] == 2
        source.run(SampleRequest(1, 2))
        assert pipe.scheduler is walking

    def test_prompts_are_given_in_turn(self) -> None:
        source = Source("pipe", PromptPipeline(), ["a cat", "a dog"])
        source.sample(source.unet, SampleRequest(3, 1, first=1))
        assert source.pipe.asked == ["a dog", "a cat", "a dog"]

    def test_without_prompts_the_captions_of_the_package_are_used(self) -> None:
        source = Source("pipe", PromptPipeline())
        source.sample(source.unet, SampleRequest(2, 1))
        assert tuple(source.pipe.asked) == captions()[:2]

    def test_a_pipeline_that_takes_neither_is_refused(self) -> None:
        source = Source("pipe", ImagePipeline())
        with pytest.raises(SourceError, match="neither prompts nor a batch size"):
            source.sample(source.unet, SampleRequest(1, 1))

    def test_a_pipeline_without_unet_is_refused(self) -> None:
        with pytest.raises(SourceError, match="object has none of unet, transformer"):
            Source("pipe", object())


class TestDigits:
    def test_images_show_the_digits_in_turn(self) -> None:
        source = resolve("digits")
        request = SampleRequest(3, 1, first=8)
        labels = source.labels(request)
        assert labels is not None
        assert labels.tolist() == [8, 9, 0]
        trajectory = source.trajectory(request)
        assert trajectory.final.shape == (3, 1, 32, 32)
        # Guidance doubles the batch.
        assert trajectory.steps[0].sample.shape == (6, 1, 32, 32)
        assert trajectory.conditioning["encoder_hidden_states"].shape[0] == 6


class TestResolve:
    @pytest.mark.parametrize("name", ["", "no-such-model", "some/where/else", "./nothing"])
    def test_what_does_not_exist_lists_what_there_is(self, name: str) -> None:
        with pytest.raises(SourceError, match="'digits', a diffusers pipeline folder or hub id, or a Python file"):
            resolve(name)

    def test_a_missing_python_file_is_named(self) -> None:
        with pytest.raises(SourceError, match=r"gone\.py: there is no such file"):
            resolve("gone.py")

    def test_a_folder_that_is_no_pipeline_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match=r"no model_index\.json"):
            resolve(str(tmp_path))

    def test_what_pipelines_need_is_named_where_it_is_missing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("qdiff_fx.sources.pipeline.find_spec", lambda name: None)
        (tmp_path / "model_index.json").write_text("{}")
        with pytest.raises(SourceError, match="need transformers: pip install 'qdiff_fx.pipelines.'"):
            resolve(str(tmp_path))

    def test_a_broken_pipeline_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "model_index.json").write_text("{")
        with pytest.raises(SourceError, match="the pipeline cannot be loaded"):
            resolve(str(tmp_path))


class FailingUNet(nn.Module):
    config = tiny_unet().config
    dtype, device = torch.float32, torch.device("cpu")

    def forward(self, *args: object, **kwargs: object) -> torch.Tensor:
        raise TypeError("no")


class PromptPipeline:
    """The least a text-to-image pipeline has."""

    def __init__(self) -> None:
        self.unet, self.scheduler = nn.Identity(), DDIMScheduler()
        self.asked: list[str] = []

    def set_progress_bar_config(self, **settings: object) -> None: ...

    def __call__(self, prompt: list[str], num_inference_steps: int = 1, output_type: str = "pil") -> object:
        self.asked = prompt

        class Result:
            images = torch.zeros(len(prompt), 4, 4, 3).numpy()

        return Result


class ImagePipeline(PromptPipeline):
    def __call__(self, image: object) -> object:  # type: ignore[override]
        return image
