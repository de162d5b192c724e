"""What a job's parts take on this machine: one step of the network, and rates of what is done with its weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import fx

from qdiff_fx.calibration.data import CalibrationData
from qdiff_fx.calibration.plan import samples_at_once
from qdiff_fx.calibration.record import as_record
from qdiff_fx.calibration.schedule import is_settled, schedule_of, settle_schedule, timesteps_of
from qdiff_fx.ir.annotations import fact, value
from qdiff_fx.ir.arguments import operand
from qdiff_fx.ir.facts import LayerPlan
from qdiff_fx.networks import PreparedUNet
from qdiff_fx.observers import Observer, TimestepObserver
from qdiff_fx.passes.quantize.merge_observers import copy_with_observers
from qdiff_fx.passes.quantize.nearest import nearest
from qdiff_fx.quant.range_methods import range_method
from qdiff_fx.sources import Source
from qdiff_fx.weight_rounding.nearest_plane import factorise
from qdiff_fx.weight_rounding.second_order import second_order
from qdiff_fx.workflow.memory import held_bytes, peak_bytes, reset_peak

SECONDS = 0.5
"""Spent on a step at least, and on all rates together at most about as much."""
OF_IMAGES = 4
"""Dimensions."""
ROWS, COLUMNS, CHANNELS, FEW, BITS, BINS = 2048, 2048, 256, 256, 4, 4
"""Of the matrices that rates are measured on."""
LEAST = 0.3
"""Of the time of the larger of two jobs: what the work that grows fastest takes at least, however times scatter."""
OPERATOR = torch.ops.qdiff


@dataclass(frozen=True)
class LayerSize:
    """A layer with a weight [O, K], read at so many positions of each row.

    Attributes:
        reads: layers that name the same value here read the same.
        bits: of the weight.
    """

    path: str
    outputs: int
    columns: int
    positions: int
    reads: str
    bits: int = 4

    @property
    def multiplications(self) -> int:
        """Of one row."""
        return self.outputs * self.columns * self.positions


@dataclass(frozen=True)
class Rates:
    """What a second does, of all threads.

    Attributes:
        moments: multiplications of second moments of codes, by which integer layers are judged too: the tile is one.
        product: multiplications of float32 matrices.
        entries, factorisation: of a matrix of K columns that is factorised, K² and K³ / 3; both take their time.
        weights, feedback: of a layer whose codes are chosen, O K and O K² / 2; both take their time.
        search: weights whose scales are searched and that are rounded to nearest codes.
        ranges: distributions that a range is chosen for: an observer keeps one for each timestep bin.
    """

    moments: float
    product: float
    entries: float
    factorisation: float
    weights: float
    feedback: float
    search: float
    ranges: float


@dataclass(frozen=True)
class Costs:
    """Everything that is known before the work begins.

    Attributes:
        samples: that are drawn together.
        rows: what these are for the network: two for each where it is guided.
        step: seconds of a float step of these rows.
        watched_step: the same with observers.
        step_bytes, watched_bytes: the memory of such steps, beyond what is held all the time.
        row_bytes: of one recorded row.
        capture: seconds that capturing took.
        held_bytes: memory of the network, prepared.
        observers: how many there are.
        layers: all that are going to be quantized and have a weight.
        draws: whether trajectories are yet to be drawn.
        in_flight: whether observers can see them while they are.
        changing_bytes: of a recorded row, what is another in every step: its images, among them all that a ControlNet
            adds to it. Prompts are recorded once.
        beside: seconds of networks that are called in every step beside this one, its ControlNets.
    """

    samples: int
    rows: int
    step: float
    watched_step: float
    step_bytes: int
    watched_bytes: int
    row_bytes: int
    capture: float
    held_bytes: int
    observers: int
    layers: tuple[LayerSize, ...]
    rates: Rates
    draws: bool = True
    in_flight: bool = False
    changing_bytes: int = 0
    beside: float = 0.0


def measure(source: Source, prepared: PreparedUNet, example: Mapping[str, Any], count: int, capture: float) -> Costs:
    """Time a step of the float network and of the prepared one, and the rates.

    Args:
        example: the network's arguments for `count` samples.
        capture: seconds that capturing took.
    """
    held = held_bytes()
    samples = samples_at_once(source.unet)
    batch = _resized(example, samples / count)
    sample = batch[prepared.signature.sample.name]
    step, step_bytes = _timed(lambda: source.unet(**batch))
    watched, layers = _watched(prepared, batch, len(sample))
    watched_step, watched_bytes = _timed(watched)
    recorded = CalibrationData([batch])
    return Costs(
        samples=samples,
        rows=len(sample),
        step=step,
        watched_step=watched_step,
        step_bytes=step_bytes,
        watched_bytes=watched_bytes,
        row_bytes=recorded.nbytes // len(sample),
        capture=capture,
        held_bytes=held,
        observers=sum(isinstance(each, Observer) for each in prepared.modules()),
        layers=layers,
        rates=measure_rates(prepared.qconfig.act_range),
        draws=source.draws,
        in_flight=source.draws and _settled(prepared, example),
        changing_bytes=sum(each.nbytes for each in recorded.tensors if each.dim() >= OF_IMAGES) // len(sample),
    )


def _settled(prepared: PreparedUNet, batch: Mapping[str, Any]) -> bool:
    """Whether a first call like this tells what timesteps are, see `InFlight`."""
    schedule = schedule_of(prepared)
    return schedule is not None and is_settled(schedule, timesteps_of(prepared, batch))


def measure_rates(act_range: str) -> Rates:
    """By doing it to random matrices, of sizes that take milliseconds."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-128, 128, (ROWS, COLUMNS), generator=generator, dtype=torch.int8)
    total = torch.zeros(COLUMNS, COLUMNS, dtype=torch.int32)
    inputs = torch.randn(ROWS, COLUMNS, generator=generator)
    weight = torch.randn(CHANNELS, COLUMNS, generator=generator)
    observer = TimestepObserver(BINS, BINS)
    observer(inputs[:BINS].clone().clamp_(min=torch.tensor([[0.0], [-9.0]] * (BINS // 2))), torch.arange(BINS))
    seen, choose = observer.statistics(), range_method(act_range)
    moment = inputs.T @ inputs / ROWS
    small, large = moment[:FEW, :FEW].contiguous(), moment
    entries, factorisation = _two_rates(
        (FEW**2, FEW**3 / 3, _best(lambda: factorise(small.clone()))),
        (COLUMNS**2, COLUMNS**3 / 3, _best(lambda: factorise(large.clone()))),
    )
    factors = factorise(small.clone()), factorise(large.clone())
    weights, feedback = _two_rates(
        (CHANNELS * FEW, CHANNELS * FEW**2 / 2, _best(lambda: second_order(weight[:, :FEW], BITS, factors[0], "mse"))),
        (weight.numel(), CHANNELS * COLUMNS**2 / 2, _best(lambda: second_order(weight, BITS, factors[1], "mse"))),
    )
    return Rates(
        moments=ROWS * COLUMNS**2 / 2 / _best(lambda: OPERATOR.int_gram(total, codes)),
        product=ROWS * COLUMNS * CHANNELS / _best(lambda: inputs @ weight.T),
        entries=entries,
        factorisation=factorisation,
        weights=weights,
        feedback=feedback,
        search=weight.numel() / _best(lambda: nearest(weight, BITS, 0, "mse")),
        ranges=BINS / _best(lambda: choose(seen, 8, True, False)),
    )


def _two_rates(small: tuple[float, float, float], large: tuple[float, float, float]) -> tuple[float, float]:
    """The rates at which two kinds of work are done, from two jobs: amounts of both, and the seconds they took."""
    (a, b, first), (c, d, second) = small, large
    # first = a x + b y, second = c x + d y
    y = max((second - first * c / a) / (d - b * c / a), LEAST * second / d)
    x = max((first - b * y) / a, 0.0)
    return 1 / max(x, 1e-15), 1 / max(y, 1e-15)


def _best(run: Callable[[], Any]) -> float:
    """Seconds, the least of a few after the first."""
    run()
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return max(min(times), 1e-9)


@torch.no_grad()
def _timed(run: Callable[[], Any]) -> tuple[float, int]:
    """Seconds of one call, and the memory it needs for itself. A call that is long is made once."""
    before = held_bytes()
    reset_peak()
    times: list[float] = []
    while sum(times) < SECONDS and len(times) < 20:
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    # The first call of a short one makes what the others find.
    return median(times[1:] or times), max(peak_bytes() - before, 0)


def _resized(example: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """The same arguments for `factor` times as many rows; these are repeated, or some left out."""
    record = as_record(example)
    return record.rows(torch.arange(max(1, round(record.count * factor))) % record.count).arguments


def _watched(
    prepared: PreparedUNet, batch: Mapping[str, Any], rows: int
) -> tuple[Callable[[], Any], tuple[LayerSize, ...]]:
    """A call of the network with observers that are thrown away, and the layers, as a first one finds them."""
    graph = copy_with_observers(prepared.graph_module)
    network = PreparedUNet(graph, prepared.signature, prepared.qconfig, [])
    settle_schedule(network, [batch])
    sizes = _Sizes(graph, rows)
    with torch.no_grad():
        sizes.run(*network.flatten_inputs((), batch))
    return lambda: network(**batch), tuple(sizes.found)


class _Sizes(fx.Interpreter):
    """Runs a graph, and notes what its layers are."""

    def __init__(self, graph: fx.GraphModule, rows: int):
        super().__init__(graph)
        self.found: list[LayerSize] = []
        self._rows = rows

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        plan = fact(n, LayerPlan)
        if plan is not None and plan.info.quantized and plan.info.kind != "attention":
            weight = value(operand(n, 1))
            outputs = weight.shape[1 if plan.info.kind == "conv_transpose" else 0]
            positions = max(1, result.numel() // (outputs * self._rows))
            columns = weight.numel() // outputs
            reads, bits = f"{n.args[0]} {columns}", plan.info.weight_bits
            self.found.append(LayerSize(plan.info.path, outputs, columns, positions, reads, bits))
        return result
