"""Whether the compiled kernels and plain torch agree about a call: both refuse it, or both compute the same."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from exact_attention import exact_and_tolerance
from torch import Tensor

from qdiff_fx.errors import KernelError
from qdiff_fx.kernels import ops as plain
from qdiff_fx.kernels import status
from qdiff_fx.kernels.registration import tensors
from tests.fuzz.problems import Arguments, Problem

ops = torch.ops.qdiff
PLAIN: dict[str, Callable[..., Any]] = {
    **{name: getattr(plain, name).reference for name in plain.__all__},
    "int_attention_vnni": plain.int_attention.reference,
    "int_attention_vnni.numbers": plain.int_attention.reference_of_numbers,
}
OUT_OF_MEMORY = ("allocate", "bad_alloc", "not enough memory")
# Of what the schema does not allow, or torch does not pass between libraries: it does not reach us.
BY_TORCH = ("qdiff::", "Overflow when unpacking", "Not yet supported ScalarType")
OPTIONAL = {"bias", "shift", "residual", "weight", "mask"}
MOST_WORK = 1 << 25  # elements of images that are worth waiting for


class Refused:
    """A call that raised."""

    def __init__(self, error: Exception):
        self.error, self.text = error, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"

    @property
    def for_memory(self) -> bool:
        """There was none, which says nothing about the arguments."""
        return isinstance(self.error, MemoryError) or any(each in self.text for each in OUT_OF_MEMORY)

    def is_clear(self, operator: str) -> bool:
        """Whether it names the operator and is of a kind that callers expect."""
        name = "int_attention" if operator.startswith("int_attention") else operator
        if isinstance(self.error, KernelError):
            return self.text.startswith(f"KernelError: {name.split('.')[0]}")
        named = name.split(".")[0] in str(self.error) or self.by_torch
        return isinstance(self.error, RuntimeError) and named and "INTERNAL ASSERT" not in str(self.error)

    @property
    def by_torch(self) -> bool:
        """What it was called with does not fit the schema."""
        return any(each in str(self.error) for each in BY_TORCH)


def call(function: Callable[..., Any], arguments: Arguments) -> Any:
    """What it returns, or a `Refused`; of one that returns nothing the first argument, which it wrote into."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = function(*arguments.values())
            return next(iter(arguments.values())) if found is None else found
        except Exception as error:
            return Refused(error)


def compiled(operator: str) -> Callable[..., Any]:
    """The operator as networks call it."""
    packet, _, overload = operator.partition(".")
    found: Callable[..., Any] = getattr(getattr(ops, packet), overload or "default")
    return found


def disagreement(problem: Problem) -> str:
    """What is wrong about the answers to a problem; nothing if all is well."""
    operator = problem.operator
    arguments, plain_arguments = problem.arguments(ops.pack_weight), problem.arguments(plain.pack_weight.reference)
    if operator in ("int_conv", "int_depthwise_conv") and _work(operator, arguments) > MOST_WORK:
        return ""
    found = call(compiled(operator), arguments)
    if isinstance(found, Refused) and (found.by_torch or "a tensor is missing" in found.text):
        return ""  # before it came to either kernel
    if any(x.is_meta for x in tensors(arguments.values())):  # computes shapes, and what it says is all there is
        bad = isinstance(found, Refused) and not found.is_clear(operator)
        return f"raw error of a meta tensor: {found.text}" if bad else ""
    if any(each is None and name not in OPTIONAL for name, each in arguments.items()):
        return ""  # which is found out before it comes to plain torch
    expected = call(PLAIN[operator], plain_arguments)
    for each, who in ((found, "compiled"), (expected, "plain")):
        if isinstance(each, Refused) and each.for_memory:
            return ""
        if isinstance(each, Refused) and not each.is_clear(operator):
            return f"raw error, {who}: {each.text}"
    if isinstance(found, Refused) != isinstance(expected, Refused):
        if _is_about_forms(problem, expected):
            return ""
        texts = [each.text if isinstance(each, Refused) else "accepted" for each in (found, expected)]
        return f"compiled: {texts[0]}; plain: {texts[1]}"
    if isinstance(found, Refused):
        return "" if problem.moves else f"a valid call is refused: {found.text}"
    if not problem.has_numbers:
        return ""
    return _difference(operator, plain_arguments, found, expected)


def _is_about_forms(problem: Problem, expected: Any) -> bool:
    """A packed weight has other sizes in either form, so what does not fit the one may fit the other."""
    named = any(move.argument in ("weights", "weight_sums", "weight_scales") for move in problem.moves)
    return named or (isinstance(expected, Refused) and "packed weight has" in expected.text)


CHECKED = {
    "int_conv": (
        "codes",
        "out_channels",
        "kernel",
        "stride",
        "padding",
        "dilation",
        "enlarge",
        "activation",
        "out_dtype",
    ),
    "int_depthwise_conv": ("codes", "weight", "stride", "padding", "dilation", "activation", "out_dtype"),
}


def _work(operator: str, arguments: Arguments) -> int:
    """Elements of the images that a convolution reads and makes; 0 where it refuses."""
    try:
        made = getattr(plain, operator).check(*(arguments[name] for name in CHECKED[operator]))
    except Exception:  # whatever it is, the call itself will tell
        return 0
    if operator == "int_depthwise_conv":
        arguments = arguments | {"enlarge": [1, 1], "codes": [arguments["codes"]]}
    padding, enlarge, x = arguments["padding"], arguments["enlarge"], arguments["codes"][0]
    read = [x.shape[2 + i] * enlarge[i] + padding[2 * i] + padding[2 * i + 1] for i in range(2)]
    return max(
        math.prod(made), math.prod(read) * max(1, x.shape[0]) * sum(each.shape[1] for each in arguments["codes"])
    )


def _difference(operator: str, arguments: Arguments, found: Any, expected: Any) -> str:
    if operator == "round_with_feedback":
        return "" if all(map(torch.equal, found, expected)) else "other codes"
    if operator == "nearest_codes":  # of two scales that are as good as each other either may be taken
        same = found[1] == expected[1]
        return "" if torch.equal(found[0][same], expected[0][same]) else "other codes of the same scale"
    if operator == "pack_weight":
        same = torch.equal(found[1][: expected[1].numel()], expected[1])
        return "" if same else "other sums"
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        kinds = f"{tuple(found.shape)} {found.dtype} and {tuple(expected.shape)} {expected.dtype}"
        return f"results of other kinds: {kinds}"
    if not expected.numel() or torch.equal(found, expected):
        return ""
    if operator == "int_gram":
        return "other sums"
    if operator.startswith("int_attention"):
        return _attention_difference(arguments, found)
    return _within(found, expected, _tolerance(operator, arguments, expected), arguments)


def _within(found: Tensor, expected: Tensor, tolerance: float, arguments: Arguments) -> str:
    if expected.is_floating_point():
        eps = torch.finfo(expected.dtype).eps if expected.dtype != torch.float32 else 1e-5
        allowed = tolerance + eps * expected.double().abs()
        finite = expected.isfinite() & found.isfinite()
        excess = ((found.double() - expected.double()).abs() - allowed)[finite]
        if (found.isnan() != expected.isnan()).any():
            return "NaN in one result only"
        return f"off by {float(excess.max()):.3g} more than {tolerance:.3g}" if (excess > 0).any() else ""
    scale = arguments.get("out_scale", arguments.get("rest_scale", arguments.get("scale")))
    steps = 1 + tolerance / scale
    difference = (found.int() - expected.int()).abs()
    if "rest_scale" in arguments:  # where the first code lies on a boundary so does the second, at the other end
        return "" if (difference > steps).float().mean() < 0.1 else "other residual codes"
    return f"codes are {int(difference.max())} apart" if int(difference.max()) > steps else ""


def _tolerance(operator: str, arguments: Arguments, expected: Tensor) -> float:
    """What float32 may lose of the largest number on the way."""
    if operator in ("int_conv", "int_linear"):
        scales = arguments.get("scales") or [arguments["scale"]]
        largest = max(float(each.max()) * scale for each in arguments["weight_scales"] for scale in scales)
        terms = max(each.numel() / max(1, sums.numel()) for each, sums in _weights(arguments))
        return 2e-6 * (1 + largest * 255 * 128 * terms**0.5 * 4)
    if operator == "int_depthwise_conv":
        taps = arguments["weight"].numel() / max(1, arguments["weight_scale"].numel())
        return 2e-6 * (1 + float(arguments["weight_scale"].max()) * arguments["scale"] * 255 * 128 * taps**0.5 * 4)
    if operator in ("group_norm_act", "layer_norm_act"):
        return 3e-5 * (1 + _spread(operator, arguments))
    if operator == "adaround_step":
        return 1e-4 * arguments["rate"]
    x = arguments["x"]
    return 2e-6 * (1 + float(x.float().abs().max()) ** (2 if arguments["activation"] == 4 else 1))


def _weights(arguments: Arguments) -> list[tuple[Tensor, Tensor]]:
    return list(zip(arguments["weights"], arguments["weight_sums"], strict=True))


def _spread(operator: str, arguments: Arguments) -> float:
    """How much larger than a group's deviation its numbers are: so many digits the variance loses."""
    if operator == "layer_norm_act":
        groups = arguments["x"].double().flatten(0, -2) if arguments["x"].dim() > 1 else arguments["x"].double()[None]
    else:
        joined = torch.cat([part.double() for part in arguments["parts"]], 1)
        groups = joined.reshape(joined.shape[0] * arguments["groups"], -1)
    deviation = (groups.var(-1, correction=0) + arguments["epsilon"]).sqrt()
    return float((groups.abs().amax(-1) / deviation).max()) ** 2


def _attention_difference(arguments: Arguments, found: Tensor) -> str:
    names = ("q", "k", "v", "mask", "q_scale", "q_zero_point", "k_scale", "v_scale", "softmax_scale", "prob_bits")
    args = (*(arguments[name] for name in names), arguments["out_dtype"])
    fixed_point = status().kernel == "avx512_vnni" and arguments["mask"] is None
    want, tolerance = exact_and_tolerance(args, fixed_point)
    if found.is_floating_point():
        allowed = tolerance + want.abs() * torch.finfo(found.dtype).eps
        excess = (found.double() - want).abs() - allowed
        return f"off by {float(excess.max()):.3g} more than rounding explains" if (excess > 0).any() else ""
    scale = arguments["out_scale"]
    codes = (want / scale).round() + arguments["out_zero_point"]
    codes = codes.clamp(arguments["out_low"], arguments["out_high"])
    apart = (found.double() - codes).abs() - 1 - tolerance / scale
    return f"codes are {float(apart.max()) + 1:.3g} apart" if (apart > 0).any() else ""
