"""An einsum of two tensors is a matrix product between permutes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import fx

from qdiff_fx.ir.annotations import value
from qdiff_fx.ir.arguments import bound
from qdiff_fx.ir.edit import insert_call
from qdiff_fx.ir.shapes import same_sizes
from qdiff_fx.passes.rule import Rule, replace_node

aten = torch.ops.aten


@dataclass(frozen=True)
class Product:
    """`left (batch…, rows…, k) · right (batch…, k, columns)` written with one letter per dimension.

    `left`, `right`, `result` are the letters as given; `batch`, `rows`, `columns` their roles; `summed` is k.
    `swapped`: the einsum names the right operand first, as in 'oc,bchw->bohw'.
    """

    left: str
    right: str
    result: str
    batch: str
    rows: str
    columns: str
    summed: str
    swapped: bool = False


class EinsumToMatmul(Rule[fx.Node]):
    """`einsum('bct,bcs->bts', q, k)` → `matmul(permute(q, [0, 2, 1]), k)`, exactly.

    Taken: two operands, one summed letter, one free letter on the right, and on the left one free letter, or any
    number when nothing is batched (a linear layer).
    """

    targets = frozenset({aten.einsum.default})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return node

    def refuse(self, gm: fx.GraphModule, found: fx.Node) -> str:
        try:
            product = read_equation(str(found.args[0]))
        except ValueError as error:
            return str(error)
        return _why_sizes_differ(found, product)

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        equation = str(found.args[0])
        product = read_equation(equation)
        left, right = _operands(found, product)
        left = _permuted(left, product.left, product.batch + product.rows + product.summed, found)
        right = _permuted(right, product.right, product.batch + product.summed + product.columns, found)
        result = insert_call(gm.graph, found, aten.matmul.default, (left, right))
        made = product.batch + product.rows + product.columns
        replace_node(found, _permuted(result, made, product.result, found))
        return f"aten.einsum.default {equation} → aten.matmul.default"


def read_equation(equation: str) -> Product:
    """Sort the letters of an einsum into roles. Raises ValueError with the reason it is no matrix product."""
    operands, arrow, result = equation.replace(" ", "").partition("->")
    if not arrow or "." in equation:
        raise ValueError(f"the einsum '{equation}' leaves letters implicit")
    if operands.count(",") != 1:
        raise ValueError(f"the einsum '{equation}' does not have two operands")
    left, right = operands.split(",")
    if any(len(set(letters)) != len(letters) for letters in (left, right, result)):
        raise ValueError(f"the einsum '{equation}' repeats a letter")
    product = _roles(left, right, result)
    if len(product.columns) > len(product.rows):
        product = replace(_roles(right, left, result), swapped=True)
    if len(product.summed) != 1 or set(product.summed) - set(right):
        raise ValueError(f"the einsum '{equation}' does not sum over one letter that both operands have")
    if len(product.columns) != 1 or not product.rows or (product.batch and len(product.rows) != 1):
        raise ValueError(f"the einsum '{equation}' is not a batch of matrix products")
    return product


def _roles(left: str, right: str, result: str) -> Product:
    def letters(*, in_left: bool, in_right: bool, in_result: bool) -> str:
        wanted = (in_left, in_right, in_result)
        pool = left + "".join(letter for letter in right if letter not in left)
        return "".join(x for x in pool if (x in left, x in right, x in result) == wanted)

    summed = [x for x in left + right if x not in result]
    return Product(
        left=left,
        right=right,
        result=result,
        batch=letters(in_left=True, in_right=True, in_result=True),
        rows=letters(in_left=True, in_right=False, in_result=True),
        columns=letters(in_left=False, in_right=True, in_result=True),
        summed="".join(dict.fromkeys(summed)) if set(summed) <= set(left) else "",
    )


def _why_sizes_differ(node: fx.Node, product: Product) -> str:
    """Einsum stretches a dimension of size 1; a matrix product stretches batch dimensions only."""
    sizes: dict[str, object] = {}
    for letters, tensor in zip((product.left, product.right), _operands(node, product)):
        for letter, size in zip(letters, value(tensor).shape):
            if letter in sizes and not same_sizes([sizes[letter]], [size]):
                return f"the sizes of '{letter}' differ: {sizes[letter]} and {size}"
            sizes[letter] = size
    return ""


def _operands(node: fx.Node, product: Product) -> list[fx.Node]:
    """The left and the right operand of the matrix product."""
    tensors: list[fx.Node] = bound(node)["tensors"]
    return tensors[::-1] if product.swapped else tensors


def _permuted(tensor: fx.Node, letters: str, wanted: str, before: fx.Node) -> fx.Node:
    if letters == wanted:
        return tensor
    dims = [letters.index(letter) for letter in wanted]
    return insert_call(before.graph, before, aten.permute.default, (tensor, dims))
