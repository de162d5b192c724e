"""Names under which a graph can hold a network's tensors: torch.fx writes them into the code it generates."""

from __future__ import annotations

import keyword

from torch import fx, nn
from torch.export import ExportedProgram

from qdiff_fx.capture.adapter import NETWORK

# What a graph module is itself made of, the container of our observers, and what torch.ao reads on every module.
_OF_THE_GRAPH = frozenset({*dir(fx.GraphModule(nn.Module(), fx.Graph())), "observers"})
_ANYWHERE = frozenset({"qconfig"})


def rename_tensors(program: ExportedProgram) -> dict[str, str]:
    """Give every tensor of an exported program a name that a graph can hold, in place.

    `blocks.0.weight` stays; `mix.in.weight` becomes `mix.in_.weight` (a keyword), `graph.weight` `graph_.weight` (a
    graph module has a `graph`). Rules, reports and errors speak of module paths, which stay as they are.

    Returns:
        The name of each tensor that got another one → its path in the network.
    """
    taken = {spec.target for spec in program.graph_signature.input_specs if spec.target}
    names: dict[str, str] = {}
    for spec in program.graph_signature.input_specs:
        if not spec.target or not spec.target.startswith(f"{NETWORK}."):
            continue
        path = spec.target
        if path not in names:
            names[path] = _unused(tensor_name(path.removeprefix(f"{NETWORK}.")), path, taken)
            _move(program, path, names[path])
        spec.target = names[path]
    return {name.removeprefix(f"{NETWORK}."): path.removeprefix(f"{NETWORK}.") for path, name in names.items()}


def tensor_name(path: str) -> str:
    """The dotted name of the tensor at a path of the network."""
    first, *rest = path.split(".")
    return ".".join([_marked(first, first in _OF_THE_GRAPH), *(_marked(part, False) for part in rest)])


def _marked(part: str, taken: bool) -> str:
    return f"{part}_" if taken or keyword.iskeyword(part) or part in _ANYWHERE else part


def _unused(name: str, path: str, taken: set[str]) -> str:
    name = f"{NETWORK}.{name}"
    while name != path and name in taken:
        name += "_"
    taken.add(name)
    return name


def _move(program: ExportedProgram, path: str, name: str) -> None:
    for tensors in (program.state_dict, program.constants):
        if path in tensors:
            tensors[name] = tensors.pop(path)
