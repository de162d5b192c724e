"""Cycles of one core that kernels take: multiply-adds per cycle of layers, cycles per element of norms.

    QDIFF_KERNELS=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=1 python -m benchmarks.kernels.cycles
    ... --cases "conv,linear" --rounds 30 --torch

A cycle is a third of what an integer multiplication takes that waits for the one before it, on the x86 processors of
the last fifteen years: a loop of such, compiled by the C compiler, is timed before every call, and the fastest of a
case counts. So the processor's frequency need not be known. (Additions would not do: newer processors do several that
wait for each other in one cycle.) Printed are the median and, in brackets, the best of the rounds. Times are those of
the thread: that others use the processor counts only where they share a core or its caches.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.kernels.bench_layers import SCALE, ZERO_POINT, codes, packed_operands, weights
from qdiff_fx.kernels import status

PRODUCTS, CYCLES_OF_ONE = 50_000, 3
CLOCK = f"""
void products(void) {{
  unsigned long x = 3;
  for (long i = 0; i < {PRODUCTS // 10}; ++i)
    __asm__ volatile({'"imul %0, %0;"' * 10} : "+r"(x));
}}
"""
# batch, input channels, height and width, output channels, kernel size
CONVOLUTIONS = [
    *[(1, 320, 64, 320, 3), (1, 1280, 16, 1280, 3), (1, 128, 32, 128, 3), (1, 256, 16, 256, 3), (1, 512, 8, 512, 3)],
    *[(1, 64, 64, 64, 3), (1, 640, 32, 320, 1)],
]
# rows, input features, output features
LINEARS = [(4096, 320, 320), (4096, 1280, 320), (1024, 640, 2560), (4, 1280, 1280)]
# batch, channels, height and width
NORMS = [(1, 320, 64), (1, 640, 32), (4, 128, 32), (1, 64, 64)]
# heads, tokens, keys, head dim
ATTENTIONS = [(2, 4096, 4096, 40), (2, 1024, 1024, 64), (2, 1024, 1024, 80), (2, 4096, 77, 40)]


FLOATS_OUT = (torch.float16, 1.0, 0, 0, 0)
CODES_OUT = (torch.uint8, 0.02, 20, 0, 255)


@dataclass(frozen=True)
class Case:
    """A call, and what it is counted in: ``units`` multiply-adds, or elements."""

    name: str
    run: Callable[[], Any]
    units: float
    per_cycle: bool = True  # else cycles per unit


def clock(folder: Path) -> Callable[[], float]:
    """Returns a function that measures the seconds of a cycle."""
    source, library = folder / "clock.c", folder / "clock.so"
    source.write_text(CLOCK)
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    products = ctypes.CDLL(str(library)).products

    def cycle() -> float:
        taken = []
        for _ in range(4):  # the first is slow
            began = time.thread_time()
            products()
            taken.append(time.thread_time() - began)
        return min(taken) / (PRODUCTS * CYCLES_OF_ONE)

    return cycle


def convolutions(with_torch: bool) -> Iterator[Case]:
    for batch, channels, size, outputs, kernel in CONVOLUTIONS:
        x = codes(batch, channels, size, size).contiguous(memory_format=torch.channels_last)
        geometry = ([kernel] * 2, [1, 1], [kernel // 2] * 4, [1, 1], [1, 1])
        units = float(batch * size * size * outputs * channels * kernel * kernel)
        name = f"conv {kernel}x{kernel} {channels}->{outputs}, {size}^2"
        weight, scales, bias = weights(outputs, channels, kernel, kernel)
        for bits in (8, 6, 5, 4):
            operands = packed_operands(limited(weight, bits), scales, bits)
            args = ([x], [SCALE], [ZERO_POINT], *operands, *geometry, bias, None, None, 0, *FLOATS_OUT)
            yield Case(f"{name} W{bits}", partial(torch.ops.qdiff.int_conv, *args), units)
        if with_torch:
            kernels = weight.float().contiguous(memory_format=torch.channels_last)
            yield Case(f"{name} torch fp32", partial(F.conv2d, x.float(), kernels, bias, padding="same"), units)


def linears(with_torch: bool) -> Iterator[Case]:
    for rows, features, outputs in LINEARS:
        x, units = codes(rows, features), float(rows * features * outputs)
        name = f"linear {rows}x{features}x{outputs}"
        weight, scales, bias = weights(outputs, features)
        for bits in (8, 4):
            operands = packed_operands(limited(weight, bits), scales, bits)
            args = (x, SCALE, ZERO_POINT, *operands, bias, None, 0, *FLOATS_OUT)
            yield Case(f"{name} W{bits}", partial(torch.ops.qdiff.int_linear, *args), units)
        if with_torch:
            yield Case(f"{name} torch fp32", partial(F.linear, x.float(), weight.float(), bias), units)


def limited(weight: Tensor, bits: int) -> Tensor:
    """Codes of 8 bits made such of fewer."""
    return weight.clamp(-(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def norms(with_torch: bool) -> Iterator[Case]:
    for batch, channels, size in NORMS:
        torch.manual_seed(0)
        x = torch.randn(batch, channels, size, size).contiguous(memory_format=torch.channels_last)
        weight, bias = torch.randn(channels), torch.randn(channels)
        name, units = f"group norm + silu {batch}x{channels}x{size}^2", float(x.numel())
        for label, value in (("f16", x.half()), ("f32", x)):
            run = partial(torch.ops.qdiff.group_norm_act, [value], 32, weight, bias, 1e-5, 1, *CODES_OUT)
            yield Case(f"{name} {label} -> codes", run, units, False)
        if with_torch:
            yield Case(f"{name} torch fp32", partial(normed, x, weight, bias), units, False)
    tokens, units = torch.randn(4096, 320).half(), 4096 * 320.0
    run = partial(torch.ops.qdiff.layer_norm_act, tokens, torch.randn(320), torch.randn(320), 1e-5, *CODES_OUT)
    yield Case("layer norm 4096x320 f16 -> codes", run, units, False)
    for label, activation in (("quantize", 0), ("silu", 1), ("gelu", 2)):
        run = partial(torch.ops.qdiff.act_quantize, tokens, activation, *CODES_OUT)
        yield Case(f"{label} 4096x320 f16 -> codes", run, units, False)


def normed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.silu(F.group_norm(x, 32, weight, bias))


def attentions(with_torch: bool) -> Iterator[Case]:
    for heads, tokens, keys, dim in ATTENTIONS:
        torch.manual_seed(0)
        q, k, v = (torch.randn(1, n, heads, dim).transpose(1, 2) for n in (tokens, keys, keys))
        scales = [x.abs().max() / 127 for x in (q, k, v)]
        whole = [(x / scale).round() for x, scale in zip((q, k, v), scales, strict=True)]
        given = ((whole[0] + 128).to(torch.uint8), whole[1].to(torch.int8), whole[2].to(torch.int8))
        args = (*given, None, scales[0], torch.tensor(128), *scales[1:], dim**-0.5, 8, torch.float16)
        name, units = f"attention {tokens} x {keys}, head {dim}", 2.0 * heads * tokens * keys * dim
        yield Case(f"{name} codes", partial(torch.ops.qdiff.int_attention_vnni, *args), units)
        if with_torch:
            yield Case(f"{name} torch fp32", partial(F.scaled_dot_product_attention, q, k, v), units)


KINDS = {"conv": convolutions, "linear": linears, "norm": norms, "attention": attentions}


def measure(case: Case, cycle: Callable[[], float], rounds: int) -> tuple[float, float]:
    """The median and the best of the rounds, in the case's unit."""
    case.run()
    taken, cycles = [], []
    for _ in range(rounds):
        cycles.append(cycle())
        began = time.thread_time()
        case.run()
        taken.append(time.thread_time() - began)
    taken = [seconds / min(cycles) for seconds in taken]
    middle, best = statistics.median(taken), min(taken)
    return (case.units / middle, case.units / best) if case.per_cycle else (middle / case.units, best / case.units)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(KINDS), help="comma-separated parts of the cases' names")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--torch", action="store_true", help="torch's float32 as well")
    parser.add_argument("--algorithm", choices=["cheapest", "direct", "winograd"], default="cheapest")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if status().available:
        torch.ops.qdiff.set_convolution_algorithm(options.algorithm)
    wanted = options.cases.split(",")
    kernels, torchs = status().kernel or status().reason, torch.backends.cpu.get_cpu_capability()
    print(f"{platform.machine()}, kernels {kernels}, torch {torchs}")
    with tempfile.TemporaryDirectory() as folder:
        cycle = clock(Path(folder))
        for kind in KINDS.values():
            for case in kind(options.torch):
                if not any(part in case.name for part in wanted):
                    continue
                middle, best = measure(case, cycle, options.rounds)
                unit = "multiply-adds per cycle" if case.per_cycle else "cycles per element"
                print(f"{case.name:52} {middle:6.1f} ({best:.1f}) {unit}", flush=True)


if __name__ == "__main__":
    main()
