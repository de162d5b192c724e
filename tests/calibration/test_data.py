import json
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from examples import examples
from qdiff_fx.calibration import CalibrationData
from qdiff_fx.calibration.nested import flatten, unflatten
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
names = st.text("abcdef_", min_size=1, max_size=5)
trees = st.dictionaries(
    names,
    st.recursive(
        tensors,
        lambda child: st.lists(child, min_size=1, max_size=3).map(tuple) | st.dictionaries(names, child, min_size=1),
        max_leaves=6,
    ),
)


@given(trees)
def test_unflatten_inverts_flatten(tree):
    def comparable(node):
        if isinstance(node, dict):
            return {key: comparable(value) for key, value in node.items()}
        return tuple(map(comparable, node)) if isinstance(node, tuple) else node.tolist()

    assert comparable(unflatten(flatten(tree))) == comparable(tree)


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

    def test_nested_arguments_come_back_as_they_were(self):
        data = CalibrationData(
            [
                {
                    "sample": torch.zeros(2, 1),
                    "added_cond_kwargs": {"time_ids": torch.ones(2, 6), "absent": None},
                    "down_block_additional_residuals": (torch.ones(2, 1), torch.zeros(1, 1)),
                }
            ]
        )
        assert data[0]["added_cond_kwargs"].keys() == {"time_ids"}
        assert [tensor.shape for tensor in data[0]["down_block_additional_residuals"]] == [(2, 1), (2, 1)]

    def test_refuses_what_does_not_fit_the_batch(self):
        with pytest.raises(CalibrationError, match=r"argument 'mask': it holds 3 samples where the batch has 2"):
            CalibrationData([{"sample": torch.zeros(2, 1), "mask": torch.zeros(3)}])
        with pytest.raises(CalibrationError, match=r"argument 'added.mode': a str cannot be recorded"):
            CalibrationData([{"sample": torch.zeros(2, 1), "added": {"mode": "fast"}}])

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

    def test_nothing_stays_nothing(self):
        assert len(CalibrationData([]).spread(3)) == 0
