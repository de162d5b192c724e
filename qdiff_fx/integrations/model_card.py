"""The README of a repository with a quantized network: what it is, its figures, how to load it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence

from qdiff_fx.ir.facts import whole_layer
from qdiff_fx.networks import QuantizedUNet
from qdiff_fx.report.comparison import megabytes

LONGEST_LIST = 20
"""Of layers in float that are named one by one."""


def model_card(
    network: QuantizedUNet,
    repository: str,
    *,
    component: str = "",
    others: Sequence[str] = (),
    size: int | None = None,
    base_model: str = "",
    license: str = "",
    figures: Mapping[str, object] | None = None,
) -> str:
    """Markdown with the front matter that the hub reads.

    Args:
        repository: "owner/name", for the lines that load it.
        component: name of the network in the pipeline that the repository holds; empty where it is the network alone.
        others: quantized networks of the pipeline beside it.
        size: of the network's files, in bytes.
        base_model: repository of the float model.
        license: its identifier on the hub. What was quantized keeps the license of what it was made from.
        figures: what was measured, by name: {"ε SQNR": "33.9 dB"}.
    """
    parts = [
        _front_matter(base_model, license, bool(component), network),
        f"# {repository.rpartition('/')[2]}",
        _what_it_is(network, component, others, base_model),
        _loading(repository, component),
        _bits(network, size),
        _measured(figures or {}),
        _layers_in_float(network),
        _fixed_sizes(network),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(base_model: str, license: str, pipeline: bool, network: QuantizedUNet) -> str:
    config = network.qconfig
    lines = [
        f"library_name: {'diffusers' if pipeline else 'qdiff_fx'}",
        "tags:",
        *(f"- {tag}" for tag in ("qdiff_fx", "quantization", f"w{config.weight_bits}a{config.act_bits}")),
    ]
    # A JSON string is one of YAML, whatever is in it.
    lines += [f"base_model: {json.dumps(base_model)}", "base_model_relation: quantized"] if base_model else []
    lines += [f"license: {json.dumps(license)}"] if license else []
    return "\n".join(["---", *lines, "---"])


def _what_it_is(network: QuantizedUNet, component: str, others: Sequence[str], base_model: str) -> str:
    config, (integer, in_float) = network.qconfig, network.explain().counts
    whole = f"A diffusion pipeline whose `{component}` is" if component else "The network of a diffusion model,"
    also = f" So are, with bits of their own, {', '.join(f'`{each}`' for each in others)}." if others else ""
    made = f" It was made from `{base_model}`." if base_model else ""
    return (
        f"{whole} quantized to W{config.weight_bits}A{config.act_bits} with qdiff_fx: {integer} of "
        f"{integer + in_float} layers run on integers, on a CPU.{also}{made} Nothing in it is code, and nothing is "
        "unpickled."
    )


def _loading(repository: str, component: str) -> str:
    if component:
        code = "import qdiff_fx\nfrom diffusers import DiffusionPipeline\n\n"
        code += f'pipe = DiffusionPipeline.from_pretrained("{repository}")'
    else:
        code = f'from qdiff_fx import load_qdiff\n\npipe.unet = load_qdiff("{repository}")  # in the float one\'s place'
    pin = "A commit as `revision=` is the same network for ever; what was fetched once loads without a network."
    return f"## How to load it\n\n```python\n{code}\n```\n\n{pin}"


def _bits(network: QuantizedUNet, size: int | None) -> str:
    config, rows = network.qconfig, network.explain().integer
    # Parts of a layer count once.
    widths = Counter(bits for _, bits in {(whole_layer(row.info.path), row.info.weight_bits) for row in rows} if bits)
    inputs = Counter(bits for _, bits in {(whole_layer(row.info.path), row.info.act_bits) for row in rows} if bits)
    facts = {
        "weights": _counted(widths),
        "activations": _counted(inputs),
        "scales of activations": "one for each part of the schedule"
        if config.act_granularity == "timestep"
        else "one per tensor",
        "attention probabilities": f"{config.softmax_bits} bits",
        "size": megabytes(size) if size is not None else "",
    }
    return "## Bits\n\n" + _table(("", ""), [(name, value) for name, value in facts.items() if value])


def _counted(bits: Mapping[int, int]) -> str:
    return ", ".join(f"{width} bits in {count} layers" for width, count in sorted(bits.items()))


def _measured(figures: Mapping[str, object]) -> str:
    if not figures:
        return ""
    return "## Figures\n\n" + _table(("what", "measured"), [(name, str(value)) for name, value in figures.items()])


def _layers_in_float(network: QuantizedUNet) -> str:
    rows = network.explain().in_float
    if not rows:
        return ""
    named = [(f"`{row.info.path}`", row.reason) for row in rows[:LONGEST_LIST]]
    rest = f"\n\nand {len(rows) - LONGEST_LIST} more." if len(rows) > LONGEST_LIST else ""
    return "## Layers in float\n\n" + _table(("layer", "why"), named) + rest


def _fixed_sizes(network: QuantizedUNet) -> str:
    fixed = network.signature.fixed_sizes
    if not fixed:
        return ""
    return "## Sizes that stay as they are\n\n" + _table(("input", "why"), list(fixed.items()))


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [head, ("---", "---"), *rows]
    return "\n".join(f"| {_cell(a)} | {_cell(b)} |" for a, b in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
