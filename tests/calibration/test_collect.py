import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from in_threads import in_threads
from listener import Listener

from qdiff_fx.bundled.modules import DigitEmbedding
from qdiff_fx.bundled.pipeline import DigitsPipeline
from qdiff_fx.calibration import CalibrationData, collect_calibration_data, plan
from qdiff_fx.errors import CalibrationError, ConfigError


def seeded(build, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(**options).eval()


def unconditional_unet():
    return seeded(
        UNet2DModel,
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )


def conditional_unet(size=8):
    return seeded(
        UNet2DConditionModel,
        sample_size=size,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        mid_block_type=None,
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
        cross_attention_dim=64,
    )


def digits_pipeline():
    return DigitsPipeline(conditional_unet(32), seeded(DigitEmbedding), DDIMScheduler())


COUNTS = {"num_samples": 3, "num_inference_steps": 4, "seed": 5, "progress": False}


@pytest.fixture(autouse=True)
def in_twos(monkeypatch):
    """Two samples are drawn together."""
    monkeypatch.setattr(plan, "GROUP", 2)


def collect(source=None, scheduler=None, **changes):
    if source is None:
        source, scheduler = unconditional_unet(), scheduler or DDIMScheduler()
    return collect_calibration_data(source, scheduler=scheduler, **{**COUNTS, **changes})


def assert_same(a, b):
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)


def timesteps_of(data):
    return [float(batch["timestep"][0]) for batch in data]


class TestNetwork:
    def test_records_every_step_of_every_sample(self):
        data = collect()
        assert [tuple(batch["sample"].shape) for batch in data] == [(2, 1, 8, 8)] * 4 + [(1, 1, 8, 8)] * 4
        assert timesteps_of(data) == [750, 500, 250, 0] * 2
        assert data.metadata["num_train_timesteps"] == 1000

    def test_records_what_the_network_saw(self):
        unet, seen = unconditional_unet(), []
        unet.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
        data = collect(unet, DDIMScheduler())
        assert all(torch.equal(batch["sample"], sample) for batch, sample in zip(data, seen, strict=True))
        assert not torch.equal(seen[0], seen[1])

    @pytest.mark.parametrize(("every", "expected"), [(2, [500, 0]), (3, [750, 0]), (4, [0])])
    def test_every_cth_step_ends_with_the_last(self, every, expected):
        assert timesteps_of(collect(every=every, num_samples=2)) == expected

    def test_hook_is_gone_and_scheduler_untouched_afterwards(self):
        unet, scheduler = unconditional_unet(), DDIMScheduler()
        collect(unet, scheduler)
        assert not unet._forward_pre_hooks
        assert scheduler.num_inference_steps is None

    def test_same_seed_same_data(self):
        assert_same(collect(), collect())
        assert not torch.equal(collect()[0]["sample"], collect(seed=6)[0]["sample"])

    def test_nobody_decides_how_many_are_drawn_together(self):
        for size in (1, 4):
            assert_same(collect(batch_size=size), collect())

    def test_large_networks_draw_one_at_a_time(self, monkeypatch):
        monkeypatch.setattr(plan, "LARGE", 100)
        assert [len(batch["sample"]) for batch in collect(num_inference_steps=1)] == [1] * 3

    def test_does_not_disturb_the_global_generator(self):
        before = torch.random.get_rng_state()
        collect()
        assert torch.equal(before, torch.random.get_rng_state())

    def test_schedulers_that_scale_inputs_and_repeat_timesteps(self):
        euler = collect(scheduler=EulerDiscreteScheduler(), num_samples=2)
        assert float(euler[0]["sample"].std()) == pytest.approx(1, abs=0.2)  # the scaled input, not the latent
        heun = collect(scheduler=HeunDiscreteScheduler(), num_samples=2)
        assert len(heun) == 7

    def test_conditioning_is_cut_and_stored_once_per_run(self):
        context = torch.randn(3, 2, 64)
        data = collect(conditional_unet(), DDIMScheduler(), inputs={"encoder_hidden_states": context})
        assert torch.equal(data[0]["encoder_hidden_states"], context[:2])
        assert torch.equal(data[4]["encoder_hidden_states"], context[2:])
        assert data[0]["encoder_hidden_states"] is data[3]["encoder_hidden_states"]

    def test_conditioning_from_a_function_is_reproducible(self):
        def draw(count):
            return {"encoder_hidden_states": torch.randn(count, 2, 64)}

        unet = conditional_unet()
        assert_same(collect(unet, DDIMScheduler(), inputs=draw), collect(unet, DDIMScheduler(), inputs=draw))

    def test_guidance_keeps_both_halves(self):
        context = torch.cat([torch.zeros(3, 2, 64), torch.ones(3, 2, 64)])
        data = collect(
            conditional_unet(), DDIMScheduler(), inputs={"encoder_hidden_states": context}, guidance_scale=3.0
        )
        first = data[0]
        assert torch.equal(first["sample"][:2], first["sample"][2:])
        assert first["encoder_hidden_states"].amax(dim=(1, 2)).tolist() == [0, 0, 1, 1]
        assert first["timestep"].tolist() == [750] * 4


class TestPipeline:
    def test_unconditional(self):
        pipeline = DDIMPipeline(unconditional_unet(), DDIMScheduler())
        data = collect(pipeline)
        assert [len(batch["sample"]) for batch in data] == [2] * 4 + [1] * 4
        assert timesteps_of(data) == [750, 500, 250, 0] * 2

    def test_guided_keeps_both_halves(self):
        data = collect(digits_pipeline(), inputs={"labels": [1, 2, 3]}, guidance_scale=2.0)
        assert [len(batch["sample"]) for batch in data] == [4] * 4 + [2] * 4
        first = data[0]
        assert torch.equal(first["sample"][:2], first["sample"][2:])
        assert not torch.equal(first["encoder_hidden_states"][:2], first["encoder_hidden_states"][2:])

    def test_same_data_as_the_loop(self):
        unet = unconditional_unet()
        assert_same(collect(DDIMPipeline(unet, DDIMScheduler())), collect(unet, DDIMScheduler()))

    def test_pipeline_is_left_as_it_was(self):
        pipeline = DDIMPipeline(unconditional_unet(), DDIMScheduler())
        pipeline.set_progress_bar_config(desc="mine")
        own, other = pipeline.scheduler, DDIMScheduler(num_train_timesteps=100)
        data = collect(pipeline, other)
        assert timesteps_of(data)[:4] == [75, 50, 25, 0]
        assert pipeline.scheduler is own
        assert pipeline._progress_bar_config == {"desc": "mine"}

    def test_arguments_it_does_not_take(self):
        pipeline = DDIMPipeline(unconditional_unet(), DDIMScheduler())
        with pytest.raises(CalibrationError, match=r"DDIMPipeline: it does not take \['guidance_scale', 'prompt'\]"):
            collect(pipeline, inputs={"prompt": "a cat"}, guidance_scale=2.0)

    def test_inputs_for_another_number_of_samples(self):
        with pytest.raises(CalibrationError, match="5 rows for 2 samples"):
            collect(digits_pipeline(), inputs={"labels": [1, 2, 3, 4, 5]}, guidance_scale=1.0)


class Scheduled:
    """A pipeline that draws along a schedule of its own, one image per prompt, from some step of it on.

    unet: called with both halves of guidance, as pipelines do.
    """

    def __init__(self, start=0, stop=None):
        self.unet, self.scheduler, self.seen = unconditional_unet(), DDIMScheduler(), []
        self.start, self.stop = start, stop

    def __call__(self, prompt=None, num_inference_steps=4, generator=None, timesteps=None, sigmas=None, size=None):
        self.seen.append({"prompt": prompt, "timesteps": timesteps, "sigmas": sigmas, "size": size})
        count = 1 if isinstance(prompt, str) else len(prompt)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps[self.start : self.stop]:
            self.unet(torch.zeros(2 * count, 1, 8, 8), t)
        return (torch.zeros(count, 1, 8, 8),)


class TestListsAndPrompts:
    def test_schedules_and_sizes_are_not_cut_like_prompts(self):
        pipeline = Scheduled()
        schedule = {"timesteps": [900, 500, 100], "sigmas": torch.tensor([3.0, 2.0, 1.0]), "size": (8, 8, 8)}
        collect(pipeline, inputs={"prompt": ["a", "b", "c"], **schedule})
        assert [call["prompt"] for call in pipeline.seen] == [["a", "b"], ["c"]]
        assert all(call[name] is schedule[name] for call in pipeline.seen for name in schedule)

    def test_one_prompt_is_for_every_sample(self):
        pipeline = Scheduled()
        data = collect(pipeline, inputs={"prompt": "a cat"})
        assert [call["prompt"] for call in pipeline.seen] == [["a cat", "a cat"], ["a cat"]]
        assert [len(batch["sample"]) for batch in data] == [4] * 4 + [2] * 4

    def test_fewer_images_than_samples_are_noticed_behind_guidance(self):
        with pytest.raises(CalibrationError, match="2 rows for 2 samples and drew 1 images.*one prompt per sample"):
            collect(Scheduled(), inputs=lambda count: {"prompt": ["only one"]})


class TestPartsOfASchedule:
    """Pipelines that start from an image skip the first steps, some leave the last ones to another network."""

    @pytest.mark.parametrize(
        ("start", "stop", "every", "expected"),
        [
            (1, None, 2, [500, 0]),
            (1, None, 3, [0]),
            (2, None, 1, [250, 0]),
            (0, 3, 2, [500, 250]),
            (0, 2, 4, [500]),
        ],
    )
    def test_the_last_step_that_is_run_is_always_there(self, start, stop, every, expected):
        data = collect(Scheduled(start, stop), num_samples=2, every=every, inputs={"prompt": "a"})
        assert timesteps_of(data) == expected

    def test_the_memory_cap_counts_what_is_run(self):
        settings = {"num_samples": 2, "num_inference_steps": 8, "inputs": {"prompt": "a"}}
        needed = collect(Scheduled(4), **settings).nbytes
        collect(Scheduled(4), **settings, memory_cap_bytes=needed)
        with pytest.raises(CalibrationError, match="at 4 steps"):
            collect(Scheduled(4), **settings, memory_cap_bytes=needed - 1)


class TestMemory:
    def test_estimate_is_what_the_data_takes(self):
        context = torch.randn(4, 2, 64)
        options = {"num_samples": 4, "inputs": {"encoder_hidden_states": context}}
        source = conditional_unet(), DDIMScheduler()
        size = collect(*source, **options).nbytes
        collect(*source, **options, memory_cap_bytes=size)
        with pytest.raises(CalibrationError, match=rf"about {size:,} bytes, the cap is {size - 1:,}.*raise every"):
            collect(*source, **options, memory_cap_bytes=size - 1)

    def test_refuses_early(self):
        unet, calls = unconditional_unet(), []
        unet.register_forward_pre_hook(lambda module, args: calls.append(1))
        with pytest.raises(CalibrationError, match="memory_cap_bytes"):
            collect(unet, DDIMScheduler(), num_inference_steps=50, memory_cap_bytes=1000)
        assert len(calls) <= 2


class TestNumbers:
    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_a_prediction_that_is_no_number_names_its_step_and_rows(self, value):
        unet, calls = unconditional_unet(), []

        def spoil(module, args, output):
            calls.append(1)
            if len(calls) == 6:
                output.sample[0, 0, 3, 3] = value

        unet.register_forward_hook(spoil)
        with pytest.raises(CalibrationError, match=r"samples 2 to 3: the network gives NaN.* in step 2 .* rows \[0\]"):
            collect(unet, DDIMScheduler(), num_samples=4)
        assert len(calls) == 6


class TestProgress:
    @pytest.mark.parametrize("start", [0, 2])
    def test_steps_are_reported_as_parts_of_samples(self, start):
        listener = Listener()
        collect(Scheduled(start), inputs={"prompt": "a"}, progress=listener)
        advanced = [each[1] for each in listener.heard if each[0] == "advance"]
        assert sum(advanced) == pytest.approx(3)
        assert len(advanced) >= 2 * (4 - start)

    def test_samples_of_an_earlier_run_are_skipped(self, tmp_path):
        listener = Listener()
        collect(resume_dir=tmp_path)
        collect(resume_dir=tmp_path, progress=listener)
        assert listener.heard == [("sampling", 3, "sample"), ("skip", 2), ("skip", 1), ("end",)]


class TestTogether:
    @pytest.mark.parametrize("count", [2, 3])
    def test_everybody_gets_what_one_draws(self, count):
        networks = [unconditional_unet() for _ in range(count)]  # from the one global generator

        def work(workers):
            return collect(networks[workers.rank], DDIMScheduler(), num_samples=5, workers=workers)

        whole = collect(num_samples=5)
        for found in in_threads(count, work):
            assert_same(found, whole)
            assert found.metadata == whole.metadata
            assert found.nbytes == whole.nbytes


class TestResuming:
    def test_finished_runs_are_not_repeated(self, tmp_path):
        whole = collect()
        unet, calls = unconditional_unet(), []
        unet.register_forward_pre_hook(lambda module, args: calls.append(1))

        def interrupted(module, args):
            if len(calls) == 6:
                raise KeyboardInterrupt

        handle = unet.register_forward_pre_hook(interrupted)
        with pytest.raises(KeyboardInterrupt):
            collect(unet, DDIMScheduler(), resume_dir=tmp_path)
        handle.remove()
        assert_same(collect(unet, DDIMScheduler(), resume_dir=tmp_path), whole)
        assert len(calls) == 6 + 4
        assert_same(collect(unet, DDIMScheduler(), resume_dir=tmp_path), whole)
        assert len(calls) == 6 + 4

    def test_refuses_data_of_another_plan(self, tmp_path):
        collect(resume_dir=tmp_path)
        with pytest.raises(CalibrationError, match=r"other settings \(every, seed\)"):
            collect(resume_dir=tmp_path, seed=6, every=2)

    def test_refuses_data_of_other_weights_scheduler_settings_and_conditioning(self, tmp_path):
        unet, scheduler = conditional_unet(), DDIMScheduler()
        inputs = {"encoder_hidden_states": torch.randn(2, 2, 64)}
        one_run = {"inputs": inputs, "resume_dir": tmp_path, "num_samples": 2}
        kept = collect(unet, scheduler, **one_run)
        assert_same(collect(conditional_unet(), DDIMScheduler(), **one_run), kept)
        other = {"encoder_hidden_states": inputs["encoder_hidden_states"] + 1e-3}
        with pytest.raises(CalibrationError, match=r"other settings \(prompts or conditioning\)\. Use another"):
            collect(unet, scheduler, **{**one_run, "inputs": other})
        with pytest.raises(CalibrationError, match=r"other settings \(prompts or conditioning\)"):
            collect(unet, scheduler, **{**one_run, "inputs": lambda count: other})
        assert_same(collect(unet, scheduler, **{**one_run, "inputs": lambda count: inputs}), kept)
        with pytest.raises(CalibrationError, match=r"other settings \(scheduler settings\)"):
            collect(unet, DDIMScheduler(beta_end=0.03), **one_run)
        with torch.no_grad():
            unet.conv_out.bias[0] += 1e-6
        with pytest.raises(CalibrationError, match=r"other settings \(weights of network\)"):
            collect(unet, scheduler, **one_run)

    def test_refuses_data_of_another_prompt_or_another_encoder(self, tmp_path):
        pipeline = digits_pipeline()
        one_run = {"num_inference_steps": 2, "resume_dir": tmp_path}
        collect(pipeline, **one_run, inputs={"labels": [1, 2, 3]})
        with pytest.raises(CalibrationError, match=r"other settings \(prompts or conditioning\)"):
            collect(pipeline, **one_run, inputs={"labels": [1, 2, 4]})
        with torch.no_grad():
            next(pipeline.embedding.parameters()).add_(1)
        with pytest.raises(CalibrationError, match=r"other settings \(weights of embedding\)"):
            collect(pipeline, **one_run, inputs={"labels": [1, 2, 3]})

    def test_refuses_data_that_do_not_say_what_they_are_of(self, tmp_path):
        collect(resume_dir=tmp_path)
        for folder in tmp_path.iterdir():
            data = CalibrationData.load(folder)
            del data.metadata["fingerprint"]
            data.save(folder)
        with pytest.raises(CalibrationError, match=r"by an earlier version.*resume_dir; CalibrationData\.load"):
            collect(resume_dir=tmp_path)


class TestRefusals:
    def test_a_network_without_a_scheduler(self):
        with pytest.raises(CalibrationError, match="Pass scheduler="):
            collect_calibration_data(unconditional_unet(), **COUNTS)

    def test_something_else(self):
        with pytest.raises(CalibrationError, match="str is neither a network nor a pipeline"):
            collect_calibration_data("pipe", **COUNTS)

    def test_a_network_of_unknown_shape(self):
        with pytest.raises(CalibrationError, match="Linear: its config has no in_channels"):
            collect(torch.nn.Linear(1, 1), DDIMScheduler())

    @pytest.mark.parametrize("name", ["num_samples", "num_inference_steps", "every"])
    def test_counts_below_one(self, name):
        with pytest.raises(ConfigError, match=f"{name}: 0 is below 1"):
            collect(**{name: 0})

    def test_more_steps_skipped_than_there_are(self):
        with pytest.raises(ConfigError, match="every: 5 is above num_inference_steps 4"):
            collect(every=5)
