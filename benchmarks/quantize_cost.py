"""What quantizing costs, phase by phase: seconds, in units of a float32 step, and the process's peak memory.

``python -m benchmarks.quantize_cost --model sd15 --weight-bits 4``

Wall-clock seconds mean something on an idle machine only; seconds of the processor's also where others work on it.

``python -m benchmarks.quantize_cost --model sd15 --by nncf`` does the same work by NNCF, with its default number of
samples and both of its presets. It needs the `bench` extra. With ``--at-most 250`` it is stopped after so many steps.

``python -m benchmarks.quantize_cost --model sdxl --shards build/sdxl`` prepares a network that is built without weights
from shards, which are written there first (random ones). Run it twice: the second time nothing but that is in memory.
With ``--saved DIR`` it goes on to a saved network, as cheaply as can be (small latents, one batch, nearest codes);
``python -m benchmarks.startup --models sdxl --saved DIR`` measures what that takes to run.
"""

from __future__ import annotations

import gc
import json as jsonlib
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, TypeVar, cast

import torch
import typer
from safetensors.torch import save_file

from benchmarks.memory import peak_rss_bytes
from benchmarks.networks import WEIGHT_SEED, Network, fill_tensor, get_network
from benchmarks.output import Column, number, print_table, write_json
from benchmarks.rivals.openvino import OpenVINO, Preset
from qdiff_fx import (
    PreparedUNet,
    QDiffConfig,
    QuantizedUNet,
    calibrate,
    convert_qdiff,
    prepare_qdiff,
    round_weights,
    save_qdiff,
)
from qdiff_fx.config import WeightRounding
from qdiff_fx.passes.quantize.measure import measure

SHARD_BYTES = 1 << 30
SMALLER = 4
"""What of the height and the width of latents a network is shown that is measured for its weights' memory alone."""
NNCF_SAMPLES = 300
"""The default of `nncf.quantize`'s subset_size."""
T = TypeVar("T")


@dataclass(frozen=True)
class CostRow:
    """One phase.

    Attributes:
        seconds, processor: wall-clock seconds, and those of all the process's threads.
        steps: `processor` in units of a float32 step's.
        peak: bytes, the largest resident set of the process so far.
    """

    phase: str
    seconds: float
    processor: float
    steps: float | None
    peak: int


COLUMNS: dict[str, Column] = {
    "phase": ("phase", str),
    "wall, s": ("seconds", number(1)),
    "processor, s": ("processor", number(1)),
    "in steps": ("steps", number(2)),
    "peak, GB": ("peak", number(2, 1e-9)),
}


@dataclass
class Costs:
    """The rows of one process."""

    step: float | None = None
    rows: list[CostRow] = field(default_factory=list)

    def measured(self, phase: str, work: Callable[[], T]) -> T:
        """Do the work, and note what it took."""
        wall, processor = time.perf_counter(), time.process_time()
        result = work()
        seconds, spent = time.perf_counter() - wall, time.process_time() - processor
        self.rows.append(CostRow(phase, seconds, spent, self.step and spent / self.step, peak_rss_bytes()))
        return result

    def add_up(self, phase: str, *, after: str) -> None:
        """A row for all that came after another one."""
        last = next(index for index, row in enumerate(self.rows) if row.phase == after)
        some = self.rows[last + 1 :]
        seconds, spent = sum(row.seconds for row in some), sum(row.processor for row in some)
        self.rows.append(CostRow(phase, seconds, spent, self.step and spent / self.step, peak_rss_bytes()))


def quantize(network: Network, weight_bits: int, rows: int, rounding: WeightRounding, costs: Costs) -> None:
    """Everything that `qdiff quantize` does after sampling, on random rows spread over the timesteps."""
    unet, inputs = network.build(False), network.inputs()
    with torch.no_grad():
        unet(**inputs)
        costs.measured("a float32 step", lambda: unet(**inputs))
    costs.step = costs.rows[-1].processor
    config = QDiffConfig(
        weight_bits=weight_bits, num_train_timesteps=network.num_train_timesteps, weight_rounding=rounding
    )
    prepared = costs.measured("prepare", lambda: prepare_qdiff(unet, config, inputs))
    batches = list(spread_batches(network, rows))
    costs.measured(f"calibrate, {rows} rows", lambda: calibrate(prepared, batches, progress=False))
    if rounding == "nearest":
        prepared.decided = costs.measured(
            "ranges and nearest codes", lambda: measure(prepared.graph_module, prepared.qconfig)
        )
    else:
        costs.measured(f"round weights, {rows} rows", lambda: round_weights(prepared, batches, progress=False))
    quantized = costs.measured("convert", lambda: convert_qdiff(prepared, "reference"))
    with tempfile.TemporaryDirectory() as folder:
        costs.measured("save", lambda: save_qdiff(quantized, Path(folder) / "saved"))
    costs.add_up("everything", after="a float32 step")


class Unfinished(BaseException):
    """The work took longer than it was given; like an interrupt, nothing that is called should catch it."""


@contextmanager
def stopped_after(seconds: float | None) -> Iterator[None]:
    """Raise `Unfinished` in the block, between two calls of Python, once the process has spent so many seconds."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Unfinished

    if seconds is None:
        yield
        return
    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def finished(work: Callable[[], object], seconds: float | None) -> bool:
    """Do the work; False: it was stopped after so many seconds."""
    try:
        with stopped_after(seconds):
            work()
    except Unfinished:
        return False
    return True


def quantize_by_nncf(network: Network, samples: int, costs: Costs, at_most: float | None) -> None:
    """Export, quantization and saving, once for each preset, on as many random batches.

    Args:
        at_most: steps that each of them may take; what is not done by then has a row that says so.
    """
    unet, inputs = network.build(False), network.inputs()
    with torch.no_grad():
        unet(**inputs)
        costs.measured("a float32 step", lambda: unet(**inputs))
    costs.step = costs.rows[-1].processor
    given = None if at_most is None else at_most * costs.step
    presets: tuple[Preset, ...] = ("default", "transformer")
    for preset in presets:
        batches, phase = spread_batches(network, samples * network.batch), f"NNCF, {preset}, {samples} samples"
        with tempfile.TemporaryDirectory() as folder:
            work = partial(OpenVINO("f32", preset).prepare, unet, network, batches, Path(folder))
            if not costs.measured(phase, partial(finished, work, given)):
                costs.rows[-1] = replace(costs.rows[-1], phase=f"{phase}: not finished")


def spread_batches(network: Network, rows: int) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of one timestep each, the noisiest first, as a sampler makes them."""
    count = max(1, rows // network.batch)
    for index in range(count):
        timestep = int(network.num_train_timesteps * (1 - (index + 0.5) / count))
        inputs = network.inputs(index)
        yield {**inputs, "timestep": torch.full_like(inputs["timestep"], timestep)}


def prepare_from(shards: Path, network: Network, costs: Costs, config: QDiffConfig | None = None) -> PreparedUNet:
    """A network without weights, and its random ones in shards."""
    if not shards.is_dir():
        write_shards(network, shards)
    costs.measured("import and build", lambda: network.build(True))
    return costs.measured(
        "prepare", lambda: prepare_qdiff(network.build(True), config, network.inputs(), weights=shards)
    )


def save_from(shards: Path, network: Network, weight_bits: int, costs: Costs, saved: Path) -> None:
    """From there to a saved network: what it computes means nothing, its sizes are those of a real one."""
    channels, height, width = network.sample_shape
    small = replace(network, sample_shape=(channels, height // SMALLER, width // SMALLER))
    quantized = _quantized_from(shards, small, weight_bits, costs)
    gc.collect()  # the float weights, which nothing but circles holds by now
    costs.measured("save", lambda: save_qdiff(quantized, saved))


def _quantized_from(shards: Path, network: Network, weight_bits: int, costs: Costs) -> QuantizedUNet:
    config = QDiffConfig(
        weight_bits=weight_bits, num_train_timesteps=network.num_train_timesteps, weight_rounding="nearest"
    )
    prepared = prepare_from(shards, network, costs, config)
    costs.measured("calibrate, one batch", lambda: calibrate(prepared, [network.inputs()], progress=False))
    return costs.measured("convert", lambda: convert_qdiff(prepared, "reference"))


def write_shards(network: Network, folder: Path) -> None:
    """The network's random weights as a sharded checkpoint, one shard in memory at a time."""
    generator = torch.Generator().manual_seed(WEIGHT_SEED)
    pending: dict[str, torch.Tensor] = {}
    places: dict[str, str] = {}

    def write() -> None:
        file = f"weights-{len(set(places.values())):02}.safetensors"
        save_file(pending, folder / file)
        places.update(dict.fromkeys(pending, file))
        pending.clear()

    folder.mkdir(parents=True)
    for name, parameter in network.build(True).named_parameters():
        pending[name] = torch.empty(parameter.shape, dtype=parameter.dtype)
        fill_tensor(name, pending[name], generator)
        if sum(tensor.nbytes for tensor in pending.values()) >= SHARD_BYTES:
            write()
    if pending:
        write()
    (folder / "weights.safetensors.index.json").write_text(jsonlib.dumps({"weight_map": places}))


def main(
    model: Annotated[str, typer.Option(help="The network.")] = "sd15",
    weight_bits: Annotated[int, typer.Option(min=2, max=8, help="Bits of the weights.")] = 4,
    threads: Annotated[int, typer.Option(help="Threads; 0: as many as torch takes.")] = 0,
    rounding: Annotated[str, typer.Option(help="Of weights: nearest or second_order.")] = "second_order",
    rows: Annotated[
        int, typer.Option(min=1, help="Samples at one timestep that are shown; 50 is `qdiff quantize`'s default here.")
    ] = 50,
    by: Annotated[str, typer.Option(help="Who quantizes: us, or nncf.")] = "us",
    samples: Annotated[int, typer.Option(min=1, help="Batches that NNCF is shown.")] = NNCF_SAMPLES,
    at_most: Annotated[float | None, typer.Option(help="Steps after which NNCF is stopped.")] = None,
    shards: Annotated[Path | None, typer.Option(help="Prepare from weights here, and nothing else.")] = None,
    saved: Annotated[Path | None, typer.Option(help="Save what is made of them here.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the rows here.")] = None,
) -> None:
    """Quantize a network of random weights, and print what each phase took."""
    if threads:
        torch.set_num_threads(threads)
    network, costs = get_network(model), Costs()
    if by == "nncf":
        quantize_by_nncf(network, samples, costs, at_most)
    elif shards is None:
        quantize(network, weight_bits, rows, cast(WeightRounding, rounding), costs)
    elif saved is None:
        prepare_from(shards, network, costs)
    else:
        save_from(shards, network, weight_bits, costs, saved)
    print_table(f"{model}, {torch.get_num_threads()} threads", COLUMNS, costs.rows)
    if json:
        write_json([asdict(row) for row in costs.rows], json)


if __name__ == "__main__":
    typer.run(main)
