"""What the inner loops of the kernels for ARM take, without a processor of the kind: instructions and predicted cycles.

    apt-get install g++-aarch64-linux-gnu llvm-19
    python -m benchmarks.kernels.arm_counts

Sources are compiled as they ship. Of each function the innermost loop with the most multiplications is taken: its
instructions are counted, and `llvm-mca` says how many products a cycle makes where all data are in the first cache.
A plain loop over a row of codes and one of weights, as the compiler vectorises it with the same flags, is what they are
compared with.

LLVM knows the timing of a Neoverse N1, whose core is that of a Cortex-A76, and takes a Cortex-A57 for the latter.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import qdiff_fx.kernels
from qdiff_fx.kernels.isa import ISAS

COMPILER = "aarch64-linux-gnu-g++"
FLAGS = ("-std=c++20", "-O3", "-ffp-contract=off", "-Wno-psabi", "-S", "-o", "-")
PROCESSORS = ("cortex-a72", "neoverse-n1", "neoverse-v1")
WITHOUT = {"neon_dotprod": ("cortex-a72",), "neon_i8mm": ("cortex-a72", "neoverse-n1"), "neon": ()}  # its instructions
ROUNDS = 200
PLAIN = """
#include <cstdint>
int32_t plain_loop(const uint8_t* codes, const int8_t* weights, int64_t count) {
  int32_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += int32_t(codes[i]) * int32_t(weights[i]);
  return sum;
}
"""
# What a multiplication of a loop is called, and how many it does by the lanes of its result.
PRODUCTS = {
    **dict.fromkeys(("sdot", "udot", "usdot"), lambda lanes: 4 * lanes),
    "usmmla": lambda lanes: 8 * lanes,
    **dict.fromkeys(("smull", "smull2", "smlal", "smlal2", "mla", "mul"), lambda lanes: lanes),
}


@dataclass(frozen=True)
class Loop:
    instructions: tuple[str, ...]

    @property
    def products(self) -> int:
        return sum(_products(line) for line in self.instructions)

    def cycles(self, processor: str) -> float:
        """Of one round, as llvm-mca predicts it."""
        command = [_analyser(), "-mtriple=aarch64-linux-gnu", f"-mcpu={processor}", "-mattr=+dotprod,+i8mm"]
        text = "\n".join(self.instructions) + "\n"
        said = _run([*command, f"-iterations={ROUNDS}"], text)
        return _number(r"Total Cycles:\s+(\d+)", said) / ROUNDS


def main() -> None:
    print("| set | loop | instructions per 64 products | " + " | ".join(PROCESSORS) + " |")
    print("|---|---|---|" + "---|" * len(PROCESSORS))
    for isa in ("neon", "neon_dotprod", "neon_i8mm"):
        for name, loop in _loops(isa):
            count = len(loop.instructions) * 64 / loop.products
            rates = ["" if each in WITHOUT[isa] else f"{loop.products / loop.cycles(each):.1f}" for each in PROCESSORS]
            print(f"| `{isa}` | {name} | {count:.1f} | " + " | ".join(rates) + " |")


def _loops(isa: str) -> Iterator[tuple[str, Loop]]:
    """The plain loop, the tile, and the products of Winograd's algorithm."""
    folder = Path(qdiff_fx.kernels.__file__).parent / "csrc"
    found = next(each for each in ISAS if each.name == isa)
    flags = dict(found.flags)["aarch64"]
    with tempfile.NamedTemporaryFile("w", suffix=".cpp") as plain:
        plain.write(PLAIN)
        plain.flush()
        yield "plain", _hottest(_run([COMPILER, *FLAGS, *flags, plain.name]), "plain_loop")
    kernels = _run([COMPILER, *FLAGS, *flags, f"-I{folder}", str(folder / found.sources[0])])
    yield "tile", _hottest(kernels, "4tileILi[36]E")
    yield "Winograd's products", _hottest(kernels, "13multiply_rowsILi6E")


def _hottest(assembly: str, function: str) -> Loop:
    loops = [loop for name, body in _functions(assembly) if re.search(function, name) for loop in _innermost(body)]
    return max(loops, key=lambda loop: (loop.products, -len(loop.instructions)))


def _functions(assembly: str) -> Iterator[tuple[str, list[str]]]:
    for name, body in re.findall(r"^(\w+):\n\.LFB\d+:\n(.*?)\.cfi_endproc", assembly, re.MULTILINE | re.DOTALL):
        yield name, body.splitlines()


def _innermost(body: list[str]) -> Iterator[Loop]:
    """Stretches that end with a branch back to their beginning and hold no other label."""
    start, label = 0, ""
    for at, line in enumerate(body):
        if named := re.match(r"(\.L\d+):", line):
            start, label = at + 1, named[1]
        elif label and re.match(rf"\t(b\.?\w+|cbn?z|tbn?z)\t.*{re.escape(label)}$", line):
            yield Loop(tuple(each for each in body[start : at + 1] if re.match(r"\t\w", each)))


def _products(line: str) -> int:
    parts = line.split()
    count = PRODUCTS.get(parts[0])
    lanes = re.match(r"v\d+\.(\d+)[hs]", parts[1]) if count else None
    return count(int(lanes[1])) if count and lanes else 0


def _analyser() -> str:
    found = next((name for name in ("llvm-mca", *(f"llvm-mca-{n}" for n in range(30, 15, -1))) if _is_new(name)), "")
    if not found:
        sys.exit("llvm-mca of LLVM 16 or later is needed: older ones know neither processor")
    return found


def _is_new(name: str) -> bool:
    return bool(shutil.which(name)) and _number(r"version (\d+)", _run([name, "--version"])) >= 16


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, f"{pattern} is not in {text[:500]}"
    return int(found[1])


def _run(command: list[str], text: str = "") -> str:
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
