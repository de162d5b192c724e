"""Arguments no pass would write: refused in words by compiled kernels and plain torch alike, never followed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from qdiff_fx.errors import KernelError
from qdiff_fx.kernels import ops as plain
from qdiff_fx.kernels import quantized_decomposed, status
from qdiff_fx.kernels.plan import Plan

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.fuzz.compare import compiled, disagreement  # noqa: E402
from tests.fuzz.problems import VALID, Problem, valid  # noqa: E402
from tests.fuzz.table import TABLE, WRAPS  # noqa: E402

ops = torch.ops.qdiff
needs_kernels = pytest.mark.skipif(not status().available, reason=status().reason or "-")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("operator", sorted(VALID))
def test_the_table_of_problems(operator: str) -> None:
    lines = [line for line in TABLE if Problem.parse(line).operator == operator]
    lines += [f"{operator} {seed}" for seed in range(5)]
    faults = {line: fault for line in lines if (fault := disagreement(Problem.parse(line)))}
    assert not faults


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"int_conv 17 dilation[0]={WRAPS}", f"int_conv: dilation must be 1..16777216, not {WRAPS}"),
        ("int_conv 17 out_channels=-1", "int_conv: out_channels must be 1..17179869184, not -1"),
        ("int_conv 17 codes[0]=sparse", "int_conv: takes dense tensors"),
        ("int_linear 9 weight_scales[0]=nan", "int_linear: weight scales must be finite"),
        ("int_linear 9 weight_sums[0]=most", "int_linear: weight sums must be those of pack_weight"),
        ("pack_weight 9 codes=most bits=4", "pack_weight: codes of 4 bits are -8 to 7"),
        ("group_norm_act 8 activation=2", "group_norm_act: there is no activation 2"),
        ("group_norm_act 8 epsilon=NaN", "group_norm_act: epsilon must be 0 or a positive finite number"),
        (
            "act_quantize 6 out_dtype=torch.uint8 scale=1e-46",
            "act_quantize: the scale must be a positive finite number",
        ),
        ("int_attention_vnni 3 q_scale=longer x", "int_attention: q_scale must hold one real number"),
        ("act_quantize 3 x=None", "act_quantize: a tensor is missing"),
        ("layer_norm_act 3 x=huge", "layer_norm_act: a tensor .* of more than"),
    ],
)
def test_messages_name_the_operator_and_the_argument(line: str, message: str) -> None:
    problem = Problem.parse(line.removesuffix(" x"))
    arguments = problem.arguments(ops.pack_weight)
    if "longer" in line:
        arguments["q_scale"] = torch.ones(2)
    with pytest.raises((KernelError, RuntimeError), match=message):
        compiled(problem.operator)(*arguments.values())


def test_of_a_batch_of_none_comes_a_result_of_none() -> None:
    for pack, conv, linear in (
        (ops.pack_weight, ops.int_conv, ops.int_linear),
        (plain.pack_weight.reference, plain.int_conv.reference, plain.int_linear.reference),
    ):
        arguments = valid("int_conv", 17, pack)
        arguments |= {"codes": [x[:0] for x in arguments["codes"]], "shift": None, "residual": None}
        assert conv(*arguments.values()).shape[0] == 0
        arguments = valid("int_linear", 17, pack)
        arguments |= {"codes": arguments["codes"].reshape(-1, arguments["codes"].shape[-1])[:0], "residual": None}
        assert linear(*arguments.values()).shape == (0, arguments["out_features"])
    for operator, name in (("group_norm_act", "parts"), ("layer_norm_act", "x"), ("act_quantize", "x")):
        arguments = valid(operator, 5)
        x = arguments[name]
        arguments[name] = [part[:0] for part in x] if isinstance(x, list) else x[:0]
        assert compiled(operator)(*arguments.values()).numel() == 0


def test_a_tensor_of_another_layout_does_not_call_itself_for_ever() -> None:
    with pytest.raises(KernelError, match="takes dense tensors"):
        ops.act_quantize(torch.ones(3).to_sparse(), 0, torch.uint8, 1.0, 0, 0, 255)
    with pytest.raises((KernelError, RuntimeError), match="on one device"):
        ops.layer_norm_act(torch.ones(3), torch.ones(3, device="meta"), None, 1e-5, torch.float32, 1.0, 0, 0, 0)


@needs_kernels
class TestPlans:
    """Constants of other types than the operator takes, and slots without end."""

    def plan(self, slots: int = 2):
        return Plan(slots)

    @pytest.mark.parametrize("slots", [-1, 2**62, 2**24 + 1])
    def test_slots(self, slots: int) -> None:
        with pytest.raises(RuntimeError, match="a plan with"):
            self.plan(slots)

    @pytest.mark.parametrize(
        ("operator", "code"),
        [
            (torch.ops.aten.relu.default, [2, 5]),  # a number for a tensor
            (torch.ops.aten.relu.default, [0]),  # nothing for a tensor
            (torch.ops.aten.reshape.default, [1, 0, 2, 3]),  # a number for a list
            (torch.ops.aten.to.dtype, [1, 0, 2, 1000]),  # a number for a dtype
            (torch.ops.aten.reshape.default, [1, 0, 6, 2**62, 2, 1]),  # a list without end
            (torch.ops.aten.reshape.default, [1, 0, 6, -1]),
        ],
    )
    def test_arguments_of_other_types(self, operator: str, code: list[int]) -> None:
        with pytest.raises(RuntimeError, match="qdiff: (another kind|a list)|cut off"):
            self.plan().add(operator, code, [], [], 1, [])


@pytest.mark.parametrize(
    "arguments",
    [
        (0.0, 0, 0, 255, torch.uint8),
        (float("nan"), 0, 0, 255, torch.uint8),
        (0.1, 0, 255, 0, torch.uint8),
        (0.1, 0, -1, 255, torch.uint8),
        (0.1, 0, 0, 255, torch.float32),
        (0.1, 0, 0, 255, torch.bool),
    ],
)
def test_the_quantizer_of_graphs_where_it_is_ours(arguments) -> None:
    with pytest.raises(KernelError, match="quantize_per_tensor: "):
        quantized_decomposed._quantize(torch.ones(3), *arguments)
