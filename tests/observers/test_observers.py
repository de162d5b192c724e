import pkgutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx

from examples import examples
from qdiff_fx import observers
from qdiff_fx.errors import CalibrationError, ConfigError
from qdiff_fx.observers import MinMaxObserver, Observer, TimestepObserver, merge, observer_types
from qdiff_fx.observers import timestep as timestep_module

KINDS = [TimestepObserver, MinMaxObserver]


def observer(kind=TimestepObserver, bins=4, schedule=100):
    return kind(bins, schedule, name="down.conv")


def assert_same_state(a, b):
    for (name, left), (_, right) in zip(a.named_buffers(), b.named_buffers(), strict=True):
        assert torch.equal(left, right), name


@st.composite
def samples(draw):
    """Samples [n, 6] whose magnitudes differ wildly, and a timestep for each."""
    count = draw(st.integers(1, 6))
    power = st.sampled_from([-149, -126, -60, -30, -3, -1, 0, 1, 4, 11, 40, 100])
    mantissa = st.floats(-1, 1, width=32)
    number = st.builds(lambda m, p: m * 2.0**p, mantissa, power)
    rows = draw(st.lists(st.lists(number, min_size=6, max_size=6), min_size=count, max_size=count))
    timesteps = draw(st.lists(st.integers(0, 99), min_size=count, max_size=count))
    return torch.tensor(rows, dtype=torch.float32), torch.tensor(timesteps)


class TestMergeEqualsOneBigObserver:
    @pytest.mark.parametrize("kind", KINDS)
    @given(data=samples(), seed=st.integers(0, 2**31))
    @examples(60)
    def test_whatever_the_split_and_the_order(self, kind, data, seed):
        rows, timesteps = data
        whole = observer(kind)
        whole(rows, timesteps)

        generator = torch.Generator().manual_seed(seed)
        parts = [observer(kind) for _ in range(3)]
        owner = torch.randint(0, 3, (len(rows),), generator=generator)
        for index in torch.randperm(len(rows), generator=generator).tolist():
            parts[int(owner[index])](rows[index : index + 1], timesteps[index])

        a, b, c = parts
        for merged in (merge(merge(a, b), c), merge(a, merge(b, c)), merge(c, merge(b, a))):
            assert_same_state(merged, whole)

    @given(data=samples())
    @examples(30)
    def test_an_empty_observer_is_neutral(self, data):
        seen = observer()
        seen(*data)
        assert_same_state(merge(observer(), seen), seen)
        assert_same_state(merge(seen, observer()), seen)

    def test_samples_large_enough_to_be_thinned(self, monkeypatch):
        monkeypatch.setattr(timestep_module, "MAX_ELEMENTS_PER_SAMPLE", 100)
        rows = torch.randn(4, 1, 31, 17, generator=torch.Generator().manual_seed(0))
        timesteps = torch.tensor([3, 99, 3, 50])
        whole, a, b = observer(), observer(), observer()
        whole(rows, timesteps)
        a(rows[:1], timesteps[:1])
        b(rows[1:], timesteps[1:])
        assert_same_state(merge(a, b), whole)
        assert int(whole.hist.sum()) < int(whole.count.sum()) == rows.numel()

    def test_merge_function_leaves_its_arguments_alone_and_the_method_does_not(self):
        a, b = observer(), observer()
        b(torch.ones(1, 3), torch.tensor([0]))
        merge(a, b)
        assert int(a.count.sum()) == 0
        assert a.merge(b) is a
        assert_same_state(a, b)

    def test_refuses_another_schedule(self):
        with pytest.raises(CalibrationError, match=r"down.conv: schedules of 100 and 1000"):
            observer().merge(observer(schedule=1000))


class TestHistogram:
    def test_small_samples_are_counted_completely(self):
        seen = observer()
        seen(torch.randn(3, 40_000), torch.tensor([0]))
        assert int(seen.hist.sum()) == int(seen.count.sum()) == 120_000

    def test_grid_is_as_fine_as_the_range_allows(self):
        seen = observer()
        seen(torch.tensor([[-3.0, 900.0]]), torch.tensor([0]))
        assert int(seen.exponent[0]) == 0
        seen(torch.tensor([[1024.0]]), torch.tensor([0]))
        assert int(seen.exponent[0]) == 1
        assert seen.hist[0].nonzero().flatten().tolist() == [1024 - 2, 1024 + 450, 1024 + 512]


class TestTimesteps:
    def test_each_sample_goes_to_its_own_bin(self):
        seen = observer()
        seen(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 24, 99]))
        assert seen.count.tolist() == [2, 0, 0, 1]
        assert seen.max_val[0] == 2
        assert seen.min_val[3] == 3

    def test_bins_are_equal_parts_of_the_schedule(self):
        seen = observer()
        seen(torch.zeros(5, 1), torch.tensor([24.9, 25.0, 49.0, 50.0, 99.5]))
        assert seen.count.tolist() == [1, 2, 1, 1]

    def test_folded_heads_follow_their_sample(self):
        seen = observer()
        seen(torch.arange(6.0).reshape(6, 1), torch.tensor([0, 99]))
        assert seen.max_val[0] == 2
        assert seen.min_val[3] == 3

    def test_a_tensor_without_samples_belongs_to_all(self):
        seen = observer()
        seen(torch.ones(1, 5), torch.tensor([0, 99]))
        assert seen.count.tolist() == [5, 0, 0, 5]

    @pytest.mark.parametrize("timestep", [7, 7.0, torch.tensor(7), torch.tensor([7.0])])
    def test_one_timestep_for_all_in_any_form(self, timestep):
        seen = observer()
        seen(torch.ones(3, 2), timestep)
        assert seen.count.tolist() == [6, 0, 0, 0]

    @pytest.mark.parametrize("timestep", [-1, 101, float("nan")])
    def test_refuses_timesteps_outside_the_schedule(self, timestep):
        with pytest.raises(
            CalibrationError, match=rf"down.conv: timestep {timestep} is outside the schedule \[0, 100\]"
        ):
            observer()(torch.ones(1), torch.tensor([timestep]))


@pytest.mark.parametrize("kind", KINDS)
class TestEveryObserver:
    def test_returns_its_argument(self, kind):
        x = torch.randn(2, 3, requires_grad=True)
        assert observer(kind)(x, torch.tensor([1])) is x

    def test_keeps_exact_ranges(self, kind):
        seen = observer(kind)
        x = torch.randn(2, 3, 5, 5)
        seen(x[:1], torch.tensor([1]))
        seen(x[1:], torch.tensor([2]))
        assert seen.min_val[0] == x.min()
        assert seen.max_val[0] == x.max()

    def test_all_state_is_in_buffers_from_the_start(self, kind):
        fresh, seen = observer(kind), observer(kind)
        seen(torch.randn(2, 3), torch.tensor([1]))
        fresh.load_state_dict(seen.state_dict())
        assert_same_state(fresh, seen)
        assert fresh.statistics().count.tolist() == [6, 0, 0, 0]

    def test_statistics_are_a_copy(self, kind):
        seen = observer(kind)
        before = seen.statistics()
        seen(torch.ones(3), torch.tensor([1]))
        assert not before.seen.any()
        assert before.name == "down.conv"

    def test_can_be_switched_off(self, kind):
        seen = observer(kind)
        seen.enabled = False
        seen(torch.full((3,), torch.nan), torch.tensor([1000]))
        assert_same_state(seen, observer(kind))

    def test_ignores_empty_tensors(self, kind):
        seen = observer(kind)
        seen(torch.ones(0, 3), torch.tensor([1]))
        assert_same_state(seen, observer(kind))

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    def test_refuses_non_finite_values_by_name(self, kind, bad):
        seen = observer(kind)
        with pytest.raises(CalibrationError, match="down.conv: the activation holds NaN or infinity"):
            seen(torch.tensor([1.0, bad, 2.0]), torch.tensor([1]))
        assert_same_state(seen, observer(kind))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
    def test_takes_any_dtype_and_layout(self, kind, dtype):
        x = torch.randn(2, 4, 6, 6).mul(10).to(dtype)
        plain, strided = observer(kind), observer(kind)
        plain(x, torch.tensor([1, 60]))
        strided(x.contiguous(memory_format=torch.channels_last), torch.tensor([1, 60]))
        assert_same_state(plain, strided)

    def test_survives_dead_code_elimination(self, kind):
        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.watch = observer(kind)

            def forward(self, x, t):
                self.watch(x, t)
                return x

        class Tracer(fx.Tracer):
            def is_leaf_module(self, module, name):
                return isinstance(module, Observer)

        net = Net()
        gm = fx.GraphModule(net, Tracer().trace(net))
        gm.graph.eliminate_dead_code()
        assert [node.target for node in gm.graph.nodes if node.op == "call_module"] == ["watch"]


def test_refuses_bins_that_cannot_work():
    with pytest.raises(ConfigError, match="11 bins do not fit a schedule of 10"):
        TimestepObserver(11, 10)
    with pytest.raises(ConfigError, match="1000 bins cannot be halved"):
        TimestepObserver(10, 10, histogram_bins=1000)


def test_observer_types_lists_every_file():
    assert observer_types() == {"timestep": TimestepObserver, "minmax": MinMaxObserver}


def test_a_new_observer_is_one_new_file(tmp_path, monkeypatch):
    (tmp_path / "absolute.py").write_text(
        "from qdiff_fx.observers.minmax import MinMaxObserver\n"
        "class AbsoluteObserver(MinMaxObserver):\n"
        "    kind = 'absolute'\n"
    )
    monkeypatch.setattr(observers, "__path__", [*observers.__path__, str(tmp_path)])
    assert "absolute" in {entry.name for entry in pkgutil.iter_modules(observers.__path__)}
    assert set(observer_types()) == {"timestep", "minmax", "absolute"}


def test_buffers_of_a_subclass_are_not_part_of_the_common_record():
    class Counting(TimestepObserver):
        kind = ""

        def __init__(self, timestep_bins, num_train_timesteps):
            super().__init__(timestep_bins, num_train_timesteps)
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

        def record(self, index, rows, lo, hi):
            super().record(index, rows, lo, hi)
            self.calls += 1

        def merge_record(self, other):
            self.calls += other.calls

    first, second = Counting(4, 100), Counting(4, 100)
    for observer, timesteps in ((first, [1.0]), (second, [1.0, 60.0])):
        for timestep in timesteps:
            observer(torch.randn(2, 3), timestep)
    assert first.statistics().count.sum() == 6
    assert merge(first, second).calls == 3
