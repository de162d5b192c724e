"""What a job will take, from what was measured; and how much of it fits into a budget.

seconds of
    sampling        trajectories / G · steps · a float step of G samples, of ControlNets too; those that observers see,
                    what these take more
    calibrating     rows / R · a step with observers, of R rows, where they have not been seen while they were drawn
    rounding        rows that weights are rounded by / R · 2 integer steps, and for each layer [O, K]: second moments
                    n K² / 2 of n positions, once for all layers that read the same; K² and K³ / 3 to factorise them;
                    O K and O K² / 2 to choose codes with error feedback; ranges; twice converting and lowering the
                    graph
    reconstructing  steps of learning, each of so many rows, forwards and backwards, and something for every layer
    saving          converting the graph; where weights are rounded to nearest, ranges and the search for their scales

Ranges are chosen once, for every observer and timestep bin. Work on the graph takes a part of the time that capturing
it took: it has as many nodes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from qdiff_fx.calibration.chunk_store import IN_MEMORY
from qdiff_fx.calibration.in_flight import ShownCalls
from qdiff_fx.errors import ConfigError
from qdiff_fx.report.amounts import duration, gigabytes
from qdiff_fx.weight_rounding.jobs import most_columns, positions_of_a_row
from qdiff_fx.weight_rounding.second_order import SEARCHED_BITS
from qdiff_fx.workflow.job import ALL_ROWS, Job
from qdiff_fx.workflow.measure import Costs, LayerSize

ROUNDING_GRAPH, SAVING_GRAPH = 1.0, 0.3
"""Of the seconds of capturing: what the passes of these phases take."""
LAYERS, REST = 0.4, 0.2
"""Of a step on integers: what layers take, in units of second moments of as many multiplications, which have no
Winograd; and norms, activations and attention, in units of their float ones. Steps of 0.13, 0.013 and 1.2 s were
estimated as 0.17, 0.012 and 1.1 s: 63 M network, digits, Stable Diffusion 1.5's size."""
UNSEARCHED = 0.3
"""Of the time of choosing codes: where one scale is tried."""
LEARNING_STEP = 0.7e-3
"""Seconds of a step of learning that are spent on a layer, however small it is."""
LEARNING_SHARE = 0.45
"""Of the steps of a preset, what units take on the average where their loss decides: many take none, few three times as
many. So much on the 63 M network and on digits."""
SHARES = (8, 4, 2)
"""Of the rows of one group of trajectories: the least that a budget chooses, and what lies between that and all."""


@dataclass(frozen=True)
class PhaseEstimate:
    """What one phase will take.

    Attributes:
        peak_bytes: the most memory the process will hold.
    """

    name: str
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Estimate:
    """What a job will take from here on.

    Attributes:
        rows: that observers will see; rounding sees as many, or fewer.
    """

    phases: tuple[PhaseEstimate, ...]
    rows: int

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)

    @property
    def peak_bytes(self) -> int:
        return max(phase.peak_bytes for phase in self.phases)


def recorded_rows(costs: Costs, job: Job) -> int:
    """How many rows the trajectories hold."""
    recorded = -(-job.request.steps // job.every)
    return recorded * job.request.count * costs.rows // costs.samples


def shown_calls(costs: Costs, job: Job) -> ShownCalls:
    """The calls that observers see while trajectories are drawn."""
    runs = -(-job.request.count // costs.samples)
    return ShownCalls(runs, -(-job.request.steps // job.every), job.rows, costs.rows)


def estimate(costs: Costs, job: Job, processes: int = 1) -> Estimate:
    """What the phases of a job will take; all but saving and reconstructing is shared out to the processes."""
    recorded = recorded_rows(costs, job)
    rows = min(job.rows or recorded, recorded)
    groups, calls = job.request.count / costs.samples, rows / costs.rows
    if processes > 1:
        groups, calls = math.ceil(groups / processes), math.ceil(calls / processes)
    data = recorded * costs.row_bytes
    phases = []
    watched = costs.held_bytes + costs.watched_bytes + data
    if costs.draws:
        seconds = groups * job.request.steps * (costs.step + costs.beside)
        if costs.in_flight:
            shown = shown_calls(costs, job)
            seconds += groups * shown.calls / shown.runs * max(costs.watched_step - costs.step, 0.0)
        peak = watched if costs.in_flight else costs.held_bytes + costs.step_bytes + data
        phases.append(PhaseEstimate("sampling", seconds, peak))
    if not costs.in_flight:
        phases.append(PhaseEstimate("calibrating", calls * costs.watched_step, watched))
    if job.config.weight_rounding != "nearest":
        flowing = flowing_bytes(costs, rounded_rows(job, rows))
        peak = costs.held_bytes + costs.step_bytes + data + rounding_bytes(costs) + flowing
        phases.append(PhaseEstimate("rounding", rounding_seconds(costs, job, rows, processes), peak))
    if job.reconstruction is not None:
        peak = costs.held_bytes + 3 * costs.step_bytes + data
        phases.append(PhaseEstimate("reconstructing", learning_seconds(costs, job), peak))
    weights = sum(layer.outputs * layer.columns for layer in costs.layers)
    seconds = saving_seconds(costs, job, rows, weights)
    phases.append(PhaseEstimate("saving", seconds, costs.held_bytes + data + 3 * weights))
    return Estimate(tuple(phases), rows)


def rounded_rows(job: Job, rows: int) -> int:
    """How many of the rows that observers see weights are rounded by."""
    return min(job.rounded or rows, rows)


def rounding_seconds(costs: Costs, job: Job, rows: int, processes: int) -> float:
    """Of choosing all codes: rows and layers are shared out, what is done to the graph is not."""
    inputs, rounded = {layer.reads: layer for layer in costs.layers}, rounded_rows(job, rows)
    moments = sum(_samples(layer, rounded) * _squared(layer) / 2 for layer in inputs.values())
    factors = sum(_squared(layer) * _at_once(layer) / 3 for layer in inputs.values())
    entries = sum(map(_squared, inputs.values()))
    weights = sum(layer.outputs * layer.columns for layer in costs.layers)
    feedback = sum(layer.outputs * _squared(layer) / 2 * _tried(layer) for layer in costs.layers)
    stepping = 2 * rounded / costs.rows * integer_step(costs)
    shared = (
        stepping
        + moments / costs.rates.moments
        + entries / costs.rates.entries
        + factors / costs.rates.factorisation
        + weights / costs.rates.weights
        + feedback / costs.rates.feedback
    )
    return shared / processes + ranges_seconds(costs, job, rows) + ROUNDING_GRAPH * costs.capture


def _tried(layer: LayerSize) -> float:
    """Of the work of choosing codes under several scales, by which its rate is known: without a search it is less."""
    return 1.0 if layer.bits <= SEARCHED_BITS else UNSEARCHED


def integer_step(costs: Costs) -> float:
    """A step on integers: layers by the rate of integers, the rest by what it takes in float."""
    multiplications = costs.rows * sum(layer.multiplications for layer in costs.layers)
    rest = max(costs.step - multiplications / costs.rates.product, 0.0)
    return min(LAYERS * multiplications / costs.rates.moments, costs.step) + REST * rest


def rounding_bytes(costs: Costs) -> int:
    """Of the second moments of the largest layer, their factor and a copy."""
    return int(12 * max(map(_at_once, costs.layers), default=0.0) ** 2)


def flowing_bytes(costs: Costs, rows: int) -> int:
    """Of what lies between two blocks and stays in memory: of every row perhaps half of what a step holds at once."""
    return min(IN_MEMORY, costs.step_bytes * rows // costs.rows // 2)


def _at_once(layer: LayerSize) -> float:
    """Columns of the second moment of a part of the layer's input channels; all, where they are few."""
    return layer.columns / math.ceil(layer.columns / most_columns(layer.bits))


def _squared(layer: LayerSize) -> float:
    """Entries of the second moments of all parts."""
    return layer.columns * _at_once(layer)


def learning_seconds(costs: Costs, job: Job) -> float:
    """Of reconstruction: forwards and twice that backwards, all units together being one network."""
    config = job.reconstruction
    if config is None:
        return 0.0
    steps = (config.weight_steps + config.act_steps) * (LEARNING_SHARE if config.typical_loss else 1.0)
    return steps * (3 * config.batch_size / costs.rows * costs.step + len(costs.layers) * LEARNING_STEP)


def ranges_seconds(costs: Costs, job: Job, rows: int) -> float:
    """Of choosing all ranges of activations: of each observer for every bin that saw something, and for all at once."""
    seen = min(job.config.timestep_bins, -(-job.request.steps // job.every), max(1, rows // costs.rows))
    return costs.observers * (seen + 1) / costs.rates.ranges


def saving_seconds(costs: Costs, job: Job, rows: int, weights: int) -> float:
    """Of conversion and writing."""
    seconds = SAVING_GRAPH * costs.capture
    if job.config.weight_rounding == "nearest":
        seconds += ranges_seconds(costs, job, rows) + weights / costs.rates.search
    return seconds


def _samples(layer: LayerSize, rows: int) -> int:
    return min(layer.positions, positions_of_a_row(int(_at_once(layer)), rows)) * rows


def fitted(costs: Costs, job: Job, seconds: float, processes: int = 1) -> Job:
    """The job with as many trajectories and rows as can be had in that time.

    Rows come first from one group of trajectories, all timesteps in turn, then from more groups. More time never gives
    fewer of them.

    Args:
        job: its trajectories are the most there may be.
        seconds: what is left for the phases that `estimate` knows.
    Raises:
        ConfigError: not even the least fits; the message says how long that takes.
    """
    best: Job | None = None
    for candidate in _candidates(costs, job):
        if estimate(costs, candidate, processes).seconds > seconds:
            break
        best = candidate
    if best is None:
        least = estimate(costs, next(_candidates(costs, job)), processes).seconds
        raise ConfigError(
            f"{duration(max(seconds, 0))} are left for what takes {duration(least)} at least",
            where="budget",
            fix=f"Give {duration(least - seconds)} more, or ask for less: fewer steps, weights rounded to nearest",
        )
    return best


def _candidates(costs: Costs, job: Job) -> Iterator[Job]:
    """Ever more rows, at ever higher cost."""
    most = job.request.count
    first = min(costs.samples, most)
    one = replace(job, budget=None, request=replace(job.request, count=first))
    recorded = recorded_rows(costs, one)
    for share in SHARES:
        yield replace(one, rows=max(1, recorded // share))
    for count in sorted({*range(first, most, costs.samples), most}):
        yield replace(one, rows=ALL_ROWS, request=replace(job.request, count=count))


def check_fits(found: Estimate, cap: int) -> None:
    """Raises ConfigError where a phase holds more memory than a cap."""
    for phase in found.phases:
        if phase.peak_bytes > cap:
            raise ConfigError(
                f"{phase.name} takes about {gigabytes(phase.peak_bytes)}, the cap is {gigabytes(cap)}",
                where="memory",
                fix="Raise it. Fewer samples and steps leave fewer recorded inputs to hold, and weights rounded to "
                "nearest need no second moments",
            )
