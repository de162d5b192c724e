"""What second-order rounding does to the outputs of real layers, by how it is done, and how long it takes.

    python -m benchmarks.rounding
    python -m benchmarks.rounding --time 11520 1280

The first takes every sixth layer of the 63 M network. What they read is seen on half of the images, and the error of
each layer's output, `tr(ΔW H ΔWᵀ)`, is measured on the other half, or on the same one. Printed are geometric means over
the layers. The second times the factor and the codes of one layer of so many columns and channels, in seconds of the
process.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.subjects import get_subject
from qdiff_fx.passes.quantize.nearest import weight_scales
from qdiff_fx.quant.numerics import quantize, weight_range
from qdiff_fx.weight_rounding import nearest_plane
from qdiff_fx.weight_rounding.nearest_plane import HessianFactor, factorise, feedback_codes, searched_codes
from qdiff_fx.weight_rounding.second_moment import SecondMoment, Window
from qdiff_fx.weight_rounding.second_order import SCALE_RATIOS, second_order

DAMPINGS = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0)
Codes = tuple[Tensor, Tensor]  # int8 [O, K], and their scales


@dataclass(frozen=True)
class Layer:
    """A layer's weight [O, K], and the second moments of what it reads in either half of the images."""

    weight: Tensor
    seen: Tensor
    unseen: Tensor
    rows: int

    def error(self, codes: Codes, moment: Tensor) -> float:
        """What they do to the outputs."""
        off = (self.weight - codes[0] * codes[1][:, None]).double()
        return float(((off @ moment.double()) * off).sum())


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", type=int, nargs=2, metavar=("COLUMNS", "CHANNELS"))
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--steps", type=int, default=25)
    arguments = parser.parse_args()
    if arguments.time:
        print_times(*arguments.time)
    else:
        layers = layers_of(arguments.images, arguments.steps)
        print_ways(layers)
        print_dampings(layers)


# ------------------------------------------------------------------------------------------------------ ways


def print_ways(layers: dict[str, Layer]) -> None:
    """Each way's errors by those of trying every scale on every column, and the seconds it takes."""
    ways: dict[str, Callable[[Layer, Tensor, tuple[int, int], HessianFactor], Codes]] = {
        "nearest codes": nearest,
        "one scale": one_scale,
        "one scale, factor by LAPACK in float64": one_scale_in_float64,
        "six scales, some given up on the way": searched,
        "six scales to the end": every_scale,
    }
    print("| bits | | error, same images | other images | s |\n|---|---|---|---|---|")
    for bits in (3, 4, 8):
        errors: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        seconds = dict.fromkeys(ways, 0.0)
        for layer in layers.values():
            factor, scales = factorise(layer.seen, rows=layer.rows), weight_scales(layer.weight, bits, method="mse")
            for name, way in ways.items():
                began = time.process_time()
                codes = way(layer, scales, weight_range(bits), factor)
                seconds[name] += time.process_time() - began
                errors[name].append((layer.error(codes, layer.seen), layer.error(codes, layer.unseen)))
        best = errors["six scales to the end"]
        for name, found in errors.items():
            same, other = (mean([a[i] / b[i] for a, b in zip(found, best, strict=True)]) for i in range(2))
            print(f"| {bits} | {name} | {same:.3f} | {other:.3f} | {seconds[name]:.1f} |", flush=True)


def nearest(layer: Layer, scales: Tensor, limits: tuple[int, int], factor: HessianFactor) -> Codes:
    return quantize(layer.weight, scales, 0, *limits, axis=0, dtype=torch.int8), scales


def one_scale(layer: Layer, scales: Tensor, limits: tuple[int, int], factor: HessianFactor) -> Codes:
    return feedback_codes(layer.weight, scales, factor, *limits)[0], scales


def one_scale_in_float64(layer: Layer, scales: Tensor, limits: tuple[int, int], factor: HessianFactor) -> Codes:
    exact = layer.seen.double()
    exact.diagonal().add_(factor.damping * exact.diagonal().mean())
    lower = torch.linalg.cholesky(exact[factor.order][:, factor.order]).float()
    return one_scale(layer, scales, limits, replace(factor, lower=lower))


def searched(layer: Layer, scales: Tensor, limits: tuple[int, int], factor: HessianFactor) -> Codes:
    codes, _, chosen = searched_codes(layer.weight, scales[:, None] * torch.tensor(SCALE_RATIOS), factor, *limits)
    return codes, chosen


def every_scale(layer: Layer, scales: Tensor, limits: tuple[int, int], factor: HessianFactor) -> Codes:
    kept, nearest_plane.KEPT = nearest_plane.KEPT, {}
    try:
        return searched(layer, scales, limits, factor)
    finally:
        nearest_plane.KEPT = kept


# -------------------------------------------------------------------------------------------------- dampings


def print_dampings(layers: dict[str, Layer]) -> None:
    """Errors on other images by those of nearest codes, of layers of many rows per column and of few."""
    print(f"\n| rows by columns | layers | {' | '.join(map(str, DAMPINGS))} | that taken |")
    print("|---" * (len(DAMPINGS) + 3) + "|")
    few = {"above 4": (4.0, math.inf), "1.5 to 4": (1.5, 4.0), "below 1.5": (0.0, 1.5)}
    for name, (low, high) in few.items():
        found = [each for each in layers.values() if low <= each.rows / len(each.seen) < high]
        errors = [mean([damped_error(each, damping) for each in found]) for damping in (*DAMPINGS, None)]
        print(f"| {name} | {len(found)} | {' | '.join(f'{each:.3f}' for each in errors)} |", flush=True)


def damped_error(layer: Layer, damping: float | None) -> float:
    """At 4 bits; without a damping, of the one that is taken."""
    rows = layer.rows if damping is None else 0
    usual, nearest_plane.DAMPING = nearest_plane.DAMPING, damping or nearest_plane.DAMPING
    try:
        factor = factorise(layer.seen, rows=rows)
    finally:
        nearest_plane.DAMPING = usual
    given = (layer, weight_scales(layer.weight, 4, method="mse"), weight_range(4), factor)
    return layer.error(one_scale(*given), layer.unseen) / layer.error(nearest(*given), layer.unseen)


def mean(ratios: list[float]) -> float:
    """The geometric one."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else math.nan


# ----------------------------------------------------------------------------------------- what layers read


def layers_of(images: int, steps: int) -> dict[str, Layer]:
    """Every sixth layer of the 63 M network."""
    subject = get_subject("anime", steps)
    unet = subject.network.build(False)
    batches = list(subject.collect(unet, images, 1))
    modules = [(name, each) for name, each in unet.named_modules() if isinstance(each, (nn.Conv2d, nn.Linear))]
    picked = {name: each for name, each in modules[3::6] if "time" not in name}
    ranges: dict[str, tuple[float, float]] = dict.fromkeys(picked, (0.0, 0.0))
    watch(unet, picked, batches[:: max(1, steps // 5)], lambda name, x, _: widen(ranges, name, x))
    moments = {name: (moment_of(each, *ranges[name]), moment_of(each, *ranges[name])) for name, each in picked.items()}
    watch(unet, picked, batches, lambda name, x, number: add(moments[name], x, number))
    return {name: layer_of(each.weight.detach(), *moments[name]) for name, each in picked.items()}


def layer_of(weight: Tensor, seen: SecondMoment, unseen: SecondMoment) -> Layer:
    return Layer(weight.flatten(1), seen.hessian(), unseen.hessian(), seen.count)


def watch(unet: nn.Module, layers: dict[str, Any], batches: Any, see: Callable[[str, Tensor, int], None]) -> None:
    """Shows what each layer reads, and the number of the batch."""
    number = 0
    handles = [
        each.register_forward_pre_hook(partial(lambda name, _, inputs: see(name, inputs[0], number), name))
        for name, each in layers.items()
    ]
    with torch.no_grad():
        for number, batch in enumerate(batches):  # noqa: B007 - the hooks read it
            unet(**batch)
    for handle in handles:
        handle.remove()


def widen(ranges: dict[str, tuple[float, float]], name: str, x: Tensor) -> None:
    low, high = ranges[name]
    ranges[name] = min(low, float(x.min())), max(high, float(x.max()))


def moment_of(layer: nn.Conv2d | nn.Linear, low: float, high: float) -> SecondMoment:
    """Of codes over that range."""
    window = None
    if isinstance(layer, nn.Conv2d):
        window = Window(layer.kernel_size, layer.stride, layer.padding, layer.dilation)  # type: ignore[arg-type]
    scale = (high - low) / 255
    return SecondMoment(layer.weight[0].numel(), window, round(-low / scale), scale)


def add(halves: tuple[SecondMoment, SecondMoment], x: Tensor, number: int) -> None:
    for index, (half, some) in enumerate(zip(halves, x.chunk(2), strict=True)):
        codes = (some / half.scale + half.zero_point).round_().clamp_(0, 255).to(torch.uint8)
        first = number * len(x) + index * len(some)
        half.add(codes, range(first, first + len(some)))


# ----------------------------------------------------------------------------------------------------- times


def print_times(columns: int, channels: int) -> None:
    """Of a layer of random weights."""
    rows = torch.randn(2000, columns) * (torch.rand(columns) * 2 + 0.2)
    hessian = (rows.T @ rows).div_(len(rows))
    weight = torch.randn(channels, columns) * 0.05
    second_order(torch.randn(4, 8), 4, factorise(torch.eye(8)), "mse")  # kernels are there afterwards
    began = time.process_time()
    factor = factorise(hessian, rows=len(rows))
    between = time.process_time()
    second_order(weight, 4, factor, "mse")
    print(
        f"{columns} columns, {channels} channels, {torch.get_num_threads()} threads: factor {between - began:.2f} s, ",
        end="",
    )
    print(f"codes {time.process_time() - between:.2f} s of processor time")


if __name__ == "__main__":
    main()
