"""Second moments of codes against float32's: multiply-adds per second of one core.

    OMP_NUM_THREADS=1 python -m benchmarks.kernels.gram
    QDIFF_KERNELS=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 OMP_NUM_THREADS=1 python -m benchmarks.kernels.gram

`int_gram` adds XᵀX of R rows of K codes, and computes half of it, R · K · (K + 1) / 2 multiply-adds, which are those
counted. Float32 is torch's `x.T @ x` of the same rows: what it takes, all of it, for the same result. Times are those
of the thread, so others that use the processor count only where they share a core or its caches; each is the least of
some rounds in turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from qdiff_fx.kernels import status

COLUMNS = (320, 1280, 2880, 4608, 11520)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", type=int, nargs="+", default=COLUMNS)
    parser.add_argument("--rows", type=float, default=2.0, help="in columns")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{status().kernel}, torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()})")
    print("| columns | rows | int_gram, s | G/s | float32, s | times |\n|---|---|---|---|---|---|")
    for columns in arguments.columns:
        rows = int(arguments.rows * columns)
        integer, floating = measured(rows, columns, arguments.rounds)
        speed = rows * columns * (columns + 1) / 2 / integer / 1e9
        print(
            f"| {columns} | {rows} | {integer:.4f} | {speed:.0f} | {floating:.4f} | {floating / integer:.1f} |",
            flush=True,
        )


def measured(rows: int, columns: int, rounds: int) -> tuple[float, float]:
    """Seconds of the operator and of float32."""
    codes = torch.randint(-128, 128, (rows, columns), dtype=torch.int8)
    total, values = torch.zeros(columns, columns, dtype=torch.int32), codes.float()
    calls = (lambda: torch.ops.qdiff.int_gram(total, codes), lambda: values.T @ values)
    times = [[seconds(call) for call in calls] for _ in range(rounds)]
    return min(each[0] for each in times), min(each[1] for each in times)


def seconds(call: Callable[[], object]) -> float:
    """Of this thread."""
    began = time.thread_time()
    call()
    return time.thread_time() - began


if __name__ == "__main__":
    main()
