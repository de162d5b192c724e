"""The few torch.fx helpers every rewrite needs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from qdiff_fx.ir.annotations import example_size
from qdiff_fx.ir.properties import copy_notes


def is_op(node: object, *targets: Callable[..., Any]) -> TypeGuard[fx.Node]:
    """Whether `node` is a call_function of one of `targets`, e.g. `torch.ops.aten.cat.default`."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def calls_of(graph: fx.Graph, *targets: Callable[..., Any]) -> list[fx.Node]:
    """The calls of any of `targets`, in execution order."""
    return sorted(node for each in targets for node in graph.find_nodes(op="call_function", target=each, sort=False))


def is_mutable(node: fx.Node) -> bool:
    """Whether the node writes into one of its arguments."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def ancestors(node: fx.Node) -> set[fx.Node]:
    """Every node that `node` depends on, itself excluded."""
    found: set[fx.Node] = set()
    pending = list(node.all_input_nodes)
    while pending:
        current = pending.pop()
        if current not in found:
            found.add(current)
            pending.extend(current.all_input_nodes)
    return found


def get_attr_tensor(gm: fx.GraphModule, node: fx.Node) -> torch.Tensor:
    """The parameter or buffer a get_attr node reads. Raises TypeError when it is something else."""
    if node.op != "get_attr":
        raise TypeError(f"{node.name} is a {node.op}, not a get_attr")
    owner, _, name = str(node.target).rpartition(".")
    value = getattr(gm.get_submodule(owner), name)
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{node.target} is a {type(value).__name__}, not a tensor")
    return value


def tensors_of(gm: fx.GraphModule, nodes: Iterable[fx.Node]) -> dict[fx.Node, torch.Tensor]:
    """The parameters and buffers that those of `nodes` read which are a get_attr."""
    return {node: get_attr_tensor(gm, node) for node in nodes if node.op == "get_attr"}


def add_buffer(gm: fx.GraphModule, name: str, tensor: torch.Tensor) -> str:
    """Register `tensor` under the dotted `name`, made unique by a numeric suffix; returns the name used."""
    path, _, leaf = name.rpartition(".")
    owner = _owner(gm, path)
    unique, count = leaf, 0
    while hasattr(owner, unique):
        count += 1
        unique = f"{leaf}_{count}"
    owner.register_buffer(unique, tensor)
    return f"{path}.{unique}" if path else unique


def replace_tensor(gm: fx.GraphModule, name: str, tensor: torch.Tensor) -> None:
    """Put another tensor under the dotted `name` of a parameter or buffer, whichever the new one is."""
    path, _, leaf = name.rpartition(".")
    owner = gm.get_submodule(path)
    delattr(owner, leaf)
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(leaf, tensor)
    else:
        owner.register_buffer(leaf, tensor)


def _owner(gm: nn.Module, path: str) -> nn.Module:
    """The submodule at the dotted `path`; missing ones are made empty."""
    owner: nn.Module = gm
    for part in path.split(".") if path else ():
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    return owner


def insert_get_attr(gm: fx.GraphModule, before: fx.Node, name: str, like: fx.Node | None = None) -> fx.Node:
    """A get_attr of the tensor registered at `name`, placed before `before`, described."""
    with gm.graph.inserting_before(before):
        node = gm.graph.get_attr(name)
    value = fake_mode(gm.graph).from_tensor(get_attr_tensor(gm, node), static_shapes=True)
    node.meta.update(val=value, path=_path(like, before))
    return node


def insert_call(
    graph: fx.Graph,
    before: fx.Node,
    target: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    like: fx.Node | None = None,
    known: torch.Tensor | None = None,
) -> fx.Node:
    """A call_function placed before `before`.

    Its value is `known`, or comes from running `target` on the inputs' fake tensors, which takes milliseconds where
    sizes are open; its path is from `like`, or from `before` when `like` is not given.
    """
    with graph.inserting_before(before):
        node = graph.call_function(target, tuple(args), dict(kwargs or {}))
    node.meta["path"] = _path(like, before)
    if known is None:
        refresh_value(node)
    else:
        node.meta["val"] = known
    return node


def elementwise(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
    """What an elementwise operator makes of a fake tensor, in a type; None where its layout is not plain to see.

    Of a tensor whose elements fill its memory the result has the strides, whatever their order.
    """
    if value.dtype == dtype and _fills_its_memory(value):
        return value
    if not isinstance(value, FakeTensor) or not _fills_its_memory(value):
        return None
    with value.fake_mode:
        return torch.empty_strided(value.shape, value.stride(), dtype=dtype, device=value.device)


def _fills_its_memory(value: torch.Tensor) -> bool:
    """Whether strides are products of sizes, symbol by symbol: what is true for other reasons is not found out."""
    expected: Any = 1
    for stride, size in sorted(
        zip(value.stride(), value.shape), key=lambda each: (example_size(each[0]), example_size(each[1]))
    ):
        if _expression(stride) != _expression(expected):
            return False
        expected = stride * size
    return True


def _expression(number: int | torch.SymInt) -> Any:
    return number if isinstance(number, int) else number.node.expr


def refresh_value(node: fx.Node) -> None:
    """Recompute the value of a call_function from its inputs' values."""
    values = fx.map_arg((node.args, node.kwargs), lambda each: each.meta.get("val"))
    # Without the Python dispatcher, composite ops (pad, linear) read sizes as plain integers in C++, which
    # pins a symbolic batch to the value it was captured with.
    with fake_mode(node.graph), enable_python_dispatcher(), torch.no_grad():
        node.meta["val"] = node.target(*values[0], **values[1])  # type: ignore[operator]  # calls a function


def fake_mode(graph: fx.Graph) -> FakeTensorMode:
    """The mode the graph's fake tensors belong to. Raises ValueError when no node has a fake value."""
    for node in graph.nodes:
        found = node.meta.get("val")
        if isinstance(found, FakeTensor):
            return found.fake_mode
    raise ValueError("the graph holds no fake tensor values: was it captured?")


def _path(like: fx.Node | None, before: fx.Node) -> str:
    path: str = (before if like is None else like).meta.get("path", "")
    return path


def drop_dead(graph: fx.Graph) -> None:
    """Erase the nodes whose results nobody reads and that do nothing else, and what only they read.

    What `Graph.eliminate_dead_code` does, in one walk and without a lint before it.
    """
    for node in reversed(list(graph.nodes)):
        if not node.users and not node.is_impure():
            graph.erase_node(node)


def clean(gm: fx.GraphModule) -> fx.GraphModule:
    """Drop dead nodes and the tensors nobody reads, check the graph, regenerate the code; returns `gm`."""
    drop_dead(gm.graph)
    # Modules first: one that is no longer called may still be called, and needed whole, by another graph.
    gm.delete_all_unused_submodules()
    _drop_unread_tensors(gm)
    gm.graph.lint()
    gm.recompile()
    return gm


def _drop_unread_tensors(gm: fx.GraphModule) -> None:
    read = {str(node.target) for node in gm.graph.nodes if node.op == "get_attr"}
    called = tuple(f"{node.target}." for node in gm.graph.nodes if node.op == "call_module")
    for path, module in list(gm.named_modules()):
        if f"{path}.".startswith(called):
            continue
        for name in [*module._parameters, *module._buffers]:
            if (f"{path}.{name}" if path else name) not in read:
                delattr(module, name)


def copy_graph(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy to rewrite freely: its own graph and module tree, the same tensors; called modules are shared."""
    root = nn.Module()
    called = {str(node.target) for node in gm.graph.nodes if node.op == "call_module"}
    for path in called:
        owner, _, name = path.rpartition(".")
        _owner(root, owner).add_module(name, gm.get_submodule(path))
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            tensor = get_attr_tensor(gm, node)
            holder = _owner(root, owner)
            if isinstance(tensor, nn.Parameter):
                holder.register_parameter(name, tensor)
            else:
                holder.register_buffer(name, tensor)
    copied = fx.GraphModule(root, copy.deepcopy(gm.graph))
    copy_notes(copied, gm)
    return copied
