import json
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from examples import examples
from qdiff_fx.calibration import CalibrationData
from qdiff_fx.calibration.nested import flatten, layout_of, layout_of_names, nested
from qdiff_fx.errors import ArtifactError, CalibrationError
from qdiff_fx.signature.roles import timestep_argument


def trajectory(timesteps, rows=2, seed=0, context=None):
    """Batches as a sampler makes them: one timestep each, the conditioning shared."""
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(rows, 3, 4, generator=generator) if context is None else context
    return [
        {"sample": torch.randn(rows, 1, 4, 4, generator=generator), "timestep": t, "encoder_hidden_states": context}
        for t in timesteps
    ]


def assert_equal_batches(a, b):
    assert len(a) == len(b)
    for left, right in zip(map(flatten, a), map(flatten, b), strict=True):
        assert left.keys() == right.keys()
        for name in left:
            assert torch.equal(left[name], right[name])


tensors = st.integers(0, 99).map(lambda value: torch.tensor([value]))
constants = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
names = st.text("abcdef_", min_size=1, max_size=5)


def trees(leaves, sequences):
    def grown(child):
        lists = st.lists(child, min_size=1, max_size=3)
        return st.one_of([lists.map(kind) for kind in sequences]) | st.dictionaries(names, child, min_size=1)

    return st.dictionaries(names, st.recursive(leaves, grown, max_leaves=6))


def comparable(node):
    if isinstance(node, dict):
        return {key: comparable(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(map(comparable, node))
    return node.tolist() if isinstance(node, torch.Tensor) else repr(node)


@given(trees(tensors | constants, (list, tuple)))
def test_arguments_come_back_as_they_were(tree):
    layout = json.loads(json.dumps(layout_of(tree)))
    assert comparable(nested(layout, flatten(tree))) == comparable(tree)


@given(trees(tensors, (tuple,)))
def test_names_alone_tell_how_tensors_were_nested(tree):
    flat = flatten(tree)
    assert comparable(nested(layout_of_names(flat), flat)) == comparable(tree)


class TestRecords:
    @pytest.mark.parametrize("timestep", [7, torch.tensor(7), torch.tensor([7]), torch.tensor([7, 7])])
    def test_the_timestep_becomes_one_per_sample(self, timestep):
        data = CalibrationData([{"sample": torch.zeros(2, 1), "timestep": timestep}])
        assert data[0]["timestep"].tolist() == [7, 7]

    def test_the_timestep_may_have_another_name(self):
        data = CalibrationData([{"x_t": torch.zeros(2, 1), "sigma": t} for t in (9, 5, 1)])
        assert data[0]["sigma"].tolist() == [9, 9]
        assert [batch["sigma"][0] for batch in data.select("last", 1)] == [1]
        assert [len(batch["x_t"]) for batch in data.batches(8)] == [2, 2, 2]

    def test_an_image_in_second_place_is_no_timestep(self):
        data = CalibrationData([{"x_t": torch.zeros(2, 1), "mask": torch.ones(2, 1, 4, 4)}])
        assert timestep_argument(data[0]) is None
        assert timestep_argument({"x_t": torch.zeros(2, 1)}) is None

    def test_they_are_nested_as_the_network_got_them(self):
        data = CalibrationData(
            [
                {
                    "sample": torch.zeros(2, 1),
                    "encoder_hidden_states": None,
                    "added_cond_kwargs": {"image_embeds": [torch.ones(2, 6)], "absent": None},
                    "cross_attention_kwargs": {"scale": 0.5},
                    "down_block_additional_residuals": (torch.ones(2, 1), torch.zeros(1, 1)),
                }
            ]
        )
        kept = data[0]
        assert kept["encoder_hidden_states"] is None
        assert kept["cross_attention_kwargs"] == {"scale": 0.5}
        assert kept["added_cond_kwargs"]["absent"] is None
        assert isinstance(kept["added_cond_kwargs"]["image_embeds"], list)
        assert [tensor.shape for tensor in kept["down_block_additional_residuals"]] == [(2, 1), (1, 1)]

    def test_refuses_what_nobody_could_keep(self):
        with pytest.raises(CalibrationError, match=r"argument 'added.mode': a object cannot be recorded"):
            CalibrationData([{"sample": torch.zeros(2, 1), "added": {"mode": object()}}])

    def test_shared_tensors_count_once(self):
        records = trajectory([9, 5, 1])
        sample, context = records[0]["sample"], records[0]["encoder_hidden_states"]
        timesteps = 3 * 2 * 8
        assert CalibrationData(records).nbytes == 3 * sample.nbytes + context.nbytes + timesteps

    def test_is_a_sequence(self):
        data = CalibrationData(trajectory([9, 5, 1]), {"seed": 3})
        assert len(data) == 3
        assert_equal_batches(list(data), [data[0], data[1], data[2]])
        assert_equal_batches(data[1:], [data[1], data[2]])
        assert data[1:].metadata == {"seed": 3}
        assert "3 batches, 6 samples" in repr(data)


class TestBatches:
    @given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 9))
    @examples(30)
    def test_keep_every_sample_and_never_mix_timesteps(self, runs, batch_size):
        data = CalibrationData([b for seed, rows in enumerate(runs) for b in trajectory([9, 5], rows, seed)])
        batches = list(data.batches(batch_size))
        assert all(1 <= len(batch["sample"]) <= batch_size for batch in batches)
        assert all(len(batch["timestep"].unique()) == 1 for batch in batches)
        for timestep in (9, 5):
            before = torch.cat([b["sample"] for b in data if b["timestep"][0] == timestep])
            after = torch.cat([b["sample"] for b in batches if b["timestep"][0] == timestep])
            assert torch.equal(before, after)

    def test_do_not_join_tensors_of_different_shapes(self):
        long, short = torch.zeros(2, 5, 4), torch.zeros(2, 3, 4)
        data = CalibrationData(trajectory([9], context=long) + trajectory([9], context=short))
        assert [b["encoder_hidden_states"].shape[1] for b in data.batches(8)] == [5, 3]

    def test_leave_batches_of_mixed_timesteps_to_themselves(self):
        mixed = {"sample": torch.zeros(2, 1), "timestep": torch.tensor([1, 2])}
        assert [len(b["sample"]) for b in CalibrationData([mixed, mixed]).batches(8)] == [2, 2]

    def test_rows_that_are_frames_stay_with_their_batch(self):
        frames = {"sample": torch.zeros(2, 1, 3), "timestep": 5, "prompts": torch.zeros(6, 4)}
        data = CalibrationData([frames, frames])
        assert [(len(b["sample"]), len(b["prompts"])) for b in data.batches(1)] == [(2, 6), (2, 6)]
        assert [len(b["prompts"]) for b in data.spread(1)] == [6]

    def test_one_row_for_all_samples_stays_one(self):
        data = CalibrationData([{"sample": torch.zeros(2, 1), "timestep": 5, "size": torch.ones(1, 2)}] * 2)
        assert [(len(b["sample"]), len(b["size"])) for b in data.batches(3)] == [(3, 1), (1, 1)]

    def test_calls_with_other_constants_are_not_joined(self):
        calls = [{"sample": torch.zeros(2, 1), "timestep": 5, "kwargs": {"scale": s}} for s in (0.5, 0.5, 1.0)]
        assert [(len(b["sample"]), b["kwargs"]["scale"]) for b in CalibrationData(calls).batches(8)] == [
            (4, 0.5),
            (2, 1.0),
        ]

    def test_refuse_an_empty_batch(self):
        with pytest.raises(CalibrationError, match="batches of 0 samples"):
            next(CalibrationData(trajectory([1])).batches(0))


class TestSelect:
    data = CalibrationData([b for seed in (0, 1) for b in trajectory(range(90, -1, -10), seed=seed)])

    @pytest.mark.parametrize(
        ("where", "expected"),
        [("first", [90, 80, 70]), ("middle", [60, 50, 40]), ("last", [20, 10, 0]), ("uniform", [90, 50, 0])],
    )
    def test_timesteps(self, where, expected):
        chosen = self.data.select(where, 3)
        assert [int(b["timestep"][0]) for b in chosen] == expected * 2
        assert chosen.metadata["selected"] == [where, 3]

    def test_everything(self):
        assert_equal_batches(self.data.select("uniform", 10), self.data)

    @pytest.mark.parametrize(("where", "steps"), [("later", 1), ("first", 0), ("first", 11)])
    def test_refusals(self, where, steps):
        with pytest.raises(CalibrationError, match="cannot select"):
            self.data.select(where, steps)


class TestSaving:
    def test_round_trip(self, tmp_path):
        data = CalibrationData(
            [
                {
                    "sample": torch.randn(2, 3),
                    "timestep": torch.tensor([1.5, 2.5]),
                    "added_cond_kwargs": {"time_ids": torch.ones(2, 6, dtype=torch.float16)},
                }
            ],
            {"seed": 3, "guidance_scale": None},
        )
        data.save(tmp_path / "calibration")
        loaded = CalibrationData.load(tmp_path / "calibration")
        assert_equal_batches(loaded, data)
        assert loaded.metadata == data.metadata

    def test_nesting_and_constants_are_kept(self, tmp_path):
        call = {
            "sample": torch.ones(2, 3),
            "timestep": 5,
            "none": None,
            "list": [torch.ones(2)],
            "kwargs": {"scale": 0.5},
        }
        CalibrationData([call]).save(tmp_path)
        loaded = CalibrationData.load(tmp_path)[0]
        assert comparable(loaded) == comparable(call | {"timestep": torch.tensor([5, 5])})

    def test_what_the_first_release_saved_is_nested_by_its_names(self):
        data = CalibrationData([{"sample": torch.ones(2, 3), "residuals": [torch.ones(2), torch.zeros(2)]}])
        description, tensors = data.to_tensors()
        for later in ("layouts", "layout_of_record"):
            del description[later]
        assert isinstance(CalibrationData.of_tensors(description, tensors)[0]["residuals"], tuple)

    def test_shared_tensors_stay_shared_and_views_are_allowed(self, tmp_path):
        base = torch.randn(4, 3)
        data = CalibrationData([*trajectory([9, 5, 1]), {"sample": base[:2], "again": base[1:3]}])
        data.save(tmp_path)
        loaded = CalibrationData.load(tmp_path)
        assert loaded.nbytes == data.nbytes
        assert_equal_batches(loaded, data)

    def test_saving_again_replaces_and_leaves_nothing_behind(self, tmp_path):
        CalibrationData(trajectory([9, 5])).save(tmp_path)
        CalibrationData(trajectory([1])).save(tmp_path)
        assert len(CalibrationData.load(tmp_path)) == 1
        assert [path.name for path in tmp_path.iterdir()] == ["calibration.safetensors"]

    def test_a_failure_keeps_the_old_file(self, tmp_path):
        CalibrationData(trajectory([9])).save(tmp_path)
        with pytest.raises(TypeError):
            CalibrationData(trajectory([9, 5]), {"bad": object()}).save(tmp_path)
        assert len(CalibrationData.load(tmp_path)) == 1

    def test_missing(self, tmp_path):
        with pytest.raises(ArtifactError, match=r"there is no calibration.safetensors"):
            CalibrationData.load(tmp_path)

    def test_damaged(self, tmp_path):
        CalibrationData(trajectory([9])).save(tmp_path)
        path = tmp_path / "calibration.safetensors"
        path.write_bytes(path.read_bytes()[:-10])
        with pytest.raises(ArtifactError, match="damaged"):
            CalibrationData.load(tmp_path)

    @pytest.mark.parametrize("metadata", [None, {"qdiff_fx": json.dumps({"format": "other", "version": 1})}])
    def test_other_files(self, tmp_path, metadata):
        save_file({"x": torch.zeros(1)}, tmp_path / "calibration.safetensors", metadata=metadata)
        with pytest.raises(ArtifactError, match="expected 'qdiff_fx calibration data' version 1"):
            CalibrationData.load(tmp_path)


class TestSpread:
    """Three trajectories of six timesteps, two rows at each."""

    data = CalibrationData([record for seed in range(3) for record in trajectory(range(50, -1, -10), seed=seed)])

    def chosen(self, rows):
        """(trajectory, timestep) of each batch."""
        """(run, row, timestep) of every row."""
        rows_of = {
            tuple(sample.flatten().tolist()): (number // 6, row, int(batch["timestep"][row]))
            for number, batch in enumerate(self.data)
            for row, sample in enumerate(batch["sample"])
        }
        spread = self.data.spread(rows)
        return [rows_of[tuple(sample.flatten().tolist())] for batch in spread for sample in batch["sample"]]

    @pytest.mark.parametrize("rows", [None, 36, 1000])
    def test_all_of_them(self, rows):
        assert_equal_batches(self.data.spread(rows), self.data)

    @pytest.mark.parametrize("rows", [6, 7, 12, 18])
    def test_every_timestep_and_several_trajectories(self, rows):
        chosen = self.chosen(rows)
        counts = Counter(timestep for _, _, timestep in chosen)
        assert set(counts) == set(range(0, 60, 10))
        assert max(counts.values()) - min(counts.values()) <= 1
        assert len({run for run, _, _ in chosen}) == 3

    def test_the_last_timestep_is_never_left_out(self):
        assert all(0 in {timestep for _, _, timestep in self.chosen(rows)} for rows in range(1, 6))

    def test_as_many_as_asked_for_each_once(self):
        for rows in range(1, 40):
            chosen = self.chosen(rows)
            assert len(chosen) == len(set(chosen)) == min(rows, 36)

    def test_rows_of_a_timestep_are_joined_again(self):
        chosen = self.data.spread(12)  # two of every timestep, of other trajectories
        joined = chosen.rebatched(2)
        assert [len(batch["sample"]) for batch in joined] == [2] * 6
        assert len(chosen) > 6
        assert joined.metadata == chosen.metadata
        expected = sorted(tuple(sample.flatten().tolist()) for batch in chosen for sample in batch["sample"])
        assert sorted(tuple(sample.flatten().tolist()) for batch in joined for sample in batch["sample"]) == expected
        assert all(len(set(batch["timestep"].tolist())) == 1 for batch in joined)

    def test_nothing_stays_nothing(self):
        assert len(CalibrationData([]).spread(3)) == 0
