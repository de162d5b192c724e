"""Where the time of one step of the native backend goes, against what each kind of work would take at least.

``python -m benchmarks.profile_step --model sd15 --cache build/bench --json out/profile.json``

Kernels are timed one by one as the step calls them. The lower bound of a layer is its operations at the rate of this
processor's dot products (measured here, on operands that stay in the first cache), that of everything else its bytes at
the rate of a copy too large for the caches (measured here too).
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import torch
import typer
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.artifacts import artifact_cache, artifact_folder, ensure_artifact
from benchmarks.lineup import get_contender
from benchmarks.networks import get_network
from benchmarks.output import Column, number, print_table, write_json
from qdiff_fx import QuantizedUNet, load_qdiff
from qdiff_fx.backends.native.runtime.program import Program


@dataclass(frozen=True)
class Kind:
    """All calls of one kind in a step: median milliseconds, giga-operations, megabytes read and written."""

    model: str
    kind: str
    calls: int
    ms: float
    gop: float
    mb: float
    bound_ms: float
    backend: str = "native"

    @property
    def gops(self) -> float | None:
        return self.gop / self.ms * 1e3 if self.gop else None

    @property
    def share_of_bound(self) -> float:
        return self.bound_ms / self.ms


class Timer(TorchDispatchMode):
    """Times every operator called under it: kind -> (seconds, operations, bytes, calls)."""

    def __init__(self) -> None:
        super().__init__()
        self.totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0])

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        start = time.perf_counter()
        result = op(*args, **kwargs)
        seconds = time.perf_counter() - start
        kind, operations = describe(op, args, result)
        moved = sum(tensor.nbytes for tensor in tensors((args, kwargs, result)))
        total = self.totals[kind]
        for index, value in enumerate((seconds, operations, moved, 1)):
            total[index] += value
        return result


@contextmanager
def operator_by_operator(quantized: QuantizedUNet) -> Iterator[None]:
    """Calls every operator through torch, where a mode can see it, instead of many at once as a plan."""
    programs = [module for module in quantized._run[0].modules() if isinstance(module, Program)]
    with ExitStack() as stack:
        for program in programs:
            stack.enter_context(mock.patch.object(program, "_run", program.graph_module.forward))
        yield


def describe(op: Any, args: tuple[Any, ...], result: Any) -> tuple[str, float]:
    """The kind of a call, and its operations where it multiplies integers (a multiply-add counts as two)."""
    name = op._schema.name.removeprefix("qdiff::")
    if name == "int_conv":
        codes, kernel = args[0], args[7]
        channels = sum(x.shape[1] for x in codes)
        kind = f"convolution {kernel[0]}x{kernel[1]}"
        return kind, 2.0 * result.numel() * channels * kernel[0] * kernel[1]
    if name == "int_linear":
        gates = len(args[3])
        return "linear", 2.0 * result.numel() * args[0].shape[-1] * gates
    if name.startswith("int_attention"):
        return "attention", 4.0 * args[0].numel() * args[1].shape[-2]
    kinds = {
        "group_norm_act": "group norm",
        "layer_norm_act": "layer norm",
        "act_quantize": "quantize",
        "act_quantize_rest": "quantize",
    }
    return kinds.get(name, "other"), 0.0


def tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors(tuple(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)


def dot_rate() -> float:
    """Integer operations a second of all threads, on a linear layer whose operands stay in their own caches."""
    ops = torch.ops.qdiff
    rows, features, outputs = 96 * torch.get_num_threads(), 4096, 512
    codes = torch.zeros(1, features, dtype=torch.uint8).expand(rows, features)
    packed, sums = ops.pack_weight(torch.ones(outputs, features, dtype=torch.int8), 8)
    scales = torch.ones(outputs)
    args = ([packed], [scales], [sums], outputs, None, None, 0, torch.uint8, 1.0, 0, 0, 255)
    return 2.0 * rows * features * outputs / fastest(lambda: ops.int_linear(codes, 1.0, 0, *args))


def copy_rate() -> float:
    """Bytes a second, read and written, of a copy that fits no cache."""
    source = torch.zeros(1 << 28, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2.0 * source.numel() / fastest(lambda: target.copy_(source))


def fastest(call: Callable[[], object], rounds: int = 15) -> float:
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def profile(model: str, folder: Path, rounds: int) -> tuple[list[Kind], float, float, float]:
    """The kinds of one step, longest first; seconds of an undisturbed step; dot and copy rates."""
    network = get_network(model)
    quantized, inputs = load_qdiff(folder), network.inputs()
    with torch.no_grad():
        for _ in range(2):
            quantized(**inputs)
        steps: list[float] = []
        runs: list[dict[str, list[float]]] = []
        for _ in range(rounds):
            start = time.perf_counter()
            quantized(**inputs)
            steps.append(time.perf_counter() - start)
            with operator_by_operator(quantized), Timer() as timer:
                quantized(**inputs)
            runs.append(dict(timer.totals))
    dots, copies = dot_rate(), copy_rate()
    rows = []
    for kind in runs[0]:
        _, operations, moved, calls = runs[0][kind]
        bound = operations / dots if operations else moved / copies
        ms = statistics.median(run[kind][0] for run in runs) * 1e3
        rows.append(Kind(model, kind, int(calls), ms, operations / 1e9, moved / 1e6, bound * 1e3))
    return sorted(rows, key=lambda row: -row.ms), statistics.median(steps), dots, copies


COLUMNS: dict[str, Column] = {
    "kind": ("kind", str),
    "calls": ("calls", number(0)),
    "ms": ("ms", number(2)),
    "bound ms": ("bound_ms", number(2)),
    "bound / ms": ("share_of_bound", number(2)),
    "GOP": ("gop", number(1)),
    "GOP/s": ("gops", number(0)),
    "MB": ("mb", number(0)),
}


def main(
    model: Annotated[str, typer.Option(help="The network.")] = "sd15",
    variant: Annotated[str, typer.Option(help="Its quantization.")] = "w8a8",
    rounds: Annotated[int, typer.Option(min=1, help="Steps.")] = 5,
    json: Annotated[Path | None, typer.Option(help="Write the rows here.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Keep the prepared network here for later runs.")] = None,
) -> None:
    """Print where one step's milliseconds go, kind by kind."""
    network, contender = get_network(model), get_contender(f"native-{variant}")
    with artifact_cache(cache) as folder:
        ensure_artifact(folder, network, contender)
        artifact = artifact_folder(folder, network, contender)
        assert artifact is not None
        rows, seconds, dots, copies = profile(model, artifact, rounds)
    timed = sum(row.ms for row in rows)
    operations = sum(row.gop for row in rows)
    caption = (
        f"{torch.get_num_threads()} threads; a step takes {seconds * 1e3:.1f} ms, the kernels {timed:.1f} ms of it, "
        f"their bounds {sum(row.bound_ms for row in rows):.1f} ms. Dot products: at most {dots / 1e9:.0f} GOP/s, the "
        f"step {operations / seconds:.0f}; copies: {copies / 1e9:.1f} GB/s"
    )
    print_table(f"{model}, {variant}", COLUMNS, rows, caption)
    if json is not None:
        derived = ({"gops": row.gops, "share_of_bound": row.share_of_bound} for row in rows)
        write_json([asdict(row) | extra for row, extra in zip(rows, derived, strict=True)], json)


if __name__ == "__main__":
    typer.run(main)
