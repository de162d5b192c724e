"""Twenty single-line faults, each of which some test has to notice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """A fault.

    Attributes:
        file: in the package, e.g. "config.py".
        before: text that stands in it once.
        after: what stands there instead.
        tests: where it must be noticed, as pytest takes it.
    """

    file: str
    before: str
    after: str
    tests: str


MUTANTS = (
    Mutant("observers/ranges.py", "momentum: float = 0.95", "momentum: float = 0.5", "tests/observers/test_ranges.py"),
    Mutant("observers/ranges.py", "1 - SHRINK * torch.arange", "1 - 2 * SHRINK * torch.arange", "tests/observers"),
    Mutant("observers/statistics.py", "index[None, :] >> steps", "index[None, :] // 2 >> steps", "tests/observers"),
    Mutant("config.py", '"act_range": "moving_average"', '"act_range": "minmax"', "tests/test_config.py"),
    Mutant("config.py", "max(self.weight_bits, self.edge_weight_bits)", "self.weight_bits", "tests/test_config.py"),
    Mutant(
        "passes/quantize/measure.py",
        "reading.observer.args[0] in varying",
        "bool(varying)",
        "tests/passes/test_timestep_tables.py",
    ),
    Mutant(
        "quant/numerics.py",
        "(qmin - (low / scale.double()).round())",
        "(qmin - (low / scale.double()).floor())",
        "tests/quant",
    ),
    Mutant("quant/numerics.py", "if bits < 8 else (-qmax, qmax)", "if bits <= 8 else (-qmax, qmax)", "tests/quant"),
    Mutant(
        "quant/packing.py", "(packed << 4).view(torch.int8) >> 4", "(packed << 4).view(torch.int8) >> 3", "tests/quant"
    ),
    Mutant(
        "quant/timestep_bins.py",
        "timesteps.to(torch.float64)",
        "timesteps.to(torch.float32)",
        "tests/quant tests/kernels/test_timestep.py",
    ),
    Mutant(
        "passes/split_shortcut/split_parts.py",
        "with_bias=index == len(inputs) - 1",
        "with_bias=True",
        "tests/passes/test_split_shortcut.py",
    ),
    Mutant(
        "passes/canonicalize/einsum.py",
        "return tensors[::-1] if product.swapped",
        "return tensors if product.swapped",
        "tests/passes/test_canonicalize.py",
    ),
    Mutant(
        "weight_rounding/nearest_plane.py",
        "return HessianFactor(order, lower, damping, rows)",
        "return HessianFactor(order.flip(0), lower, damping, rows)",
        "tests/weight_rounding",
    ),
    Mutant(
        "reconstruction/adaround.py",
        "(self.up >= 0)",
        "(self.up > 1)",
        "tests/reconstruction/test_adaround.py",
    ),
    Mutant(
        "kernels/ops/int_attention.py",
        "scores.masked_fill_(~mask, -math.inf)",
        "scores.masked_fill_(mask, -math.inf)",
        "tests/kernels/test_attention.py",
    ),
    Mutant(
        "kernels/epilogue.py",
        "torch.round(x.float() * (1.0 / scale))",
        "torch.floor(x.float() * (1.0 / scale))",
        "tests/kernels/test_integer.py",
    ),
    Mutant(
        "storage/artifact.py", "if artifact.digest != digest:", "if not digest:", "tests/storage/test_reading_again.py"
    ),
    Mutant(
        "evaluation/fidelity.py",
        "(images.double() / 2 + 0.5).clamp(0, 1)",
        "(images.double() / 2 + 0.5)",
        "tests/evaluation",
    ),
    Mutant(
        "calibration/data.py",
        "int(_STARTS[timesteps] * (len(recorded) - steps))",
        "int(_STARTS[timesteps] * len(recorded))",
        "tests/calibration/test_data.py",
    ),
    Mutant("tuning/allocate.py", "ub=1 - bytes_besides / budget.bytes", "ub=1.0", "tests/tuning/test_allocate.py"),
)
