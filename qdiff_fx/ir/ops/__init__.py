"""One table of every operator we recognise: what it is for, what it does to channels, elements and types.

An operator has one row, in the file of its family; the sets below are read from the table. To make another operator
known, add its row.
"""

from __future__ import annotations

from typing import Any

from qdiff_fx.ir.ops.operator import Channels, Kind, Layer, Layout, NoOp, Operator, Trait, Writes
from qdiff_fx.ir.ops.table import (
    TABLE,
    Target,
    channels_of,
    has_trait,
    is_pure,
    overloads,
    read_by_value,
    resolve,
    row_of,
    select,
    spellings,
    where,
    why_not_stored,
)

# Layers with weights, as canonicalize spells them; convolutions by their spatial dimensions.
WEIGHT_LAYERS: dict[Any, Layer] = {
    target: row.layer
    for target in select(lambda row: row.kind is Kind.LAYER and row.layer is not None)
    if (row := row_of(target)) is not None and row.layer is not None
}
CONVS = {layer.dims: target for target, layer in WEIGHT_LAYERS.items() if layer.kind == "conv"}
TRANSPOSED_CONVS = {layer.dims: target for target, layer in WEIGHT_LAYERS.items() if layer.kind == "conv_transpose"}
(LINEAR,) = (target for target, layer in WEIGHT_LAYERS.items() if layer.kind == "linear")
(ATTENTION,) = select(lambda row: row.layer is not None and row.layer.kind == "attention")
# Convolutions whose padding is a word.
WORDED_PADDING = spellings(*CONVS.values()) - frozenset(CONVS.values())

# What moves elements.
ALIASES = where(lambda row: row.layout is Layout.ALIAS)
COPIES = where(lambda row: row.layout is Layout.COPY)
CASTS = where(lambda row: row.layout is Layout.CAST)
RESHAPES = where(lambda row: row.layout is Layout.RESHAPE)
PERMUTATIONS = where(lambda row: row.layout is Layout.PERMUTATION)
PADS = where(lambda row: row.kind is Kind.PADDING)
MOVES_CODES = where(lambda row: Trait.MOVES_CODES in row.traits)
STRIDE_READERS = where(lambda row: Trait.READS_STRIDES in row.traits)

# What computes.
AFFINE = where(lambda row: Trait.AFFINE in row.traits)
BETWEEN_SCORES = where(lambda row: Trait.BETWEEN_SCORES in row.traits)
SCALES = where(lambda row: row.noop is NoOp.BY_ONE)
MULTIPLICATIONS = SCALES & overloads("aten.mul")
DIVISIONS = SCALES & overloads("aten.div")
FILLS = overloads("aten.masked_fill")
LIMITS = overloads("aten.tanh") | overloads("aten.clamp")
SOFTMAXES = spellings(*select(lambda row: row.name == "aten.softmax.int"))
DROPOUTS = where(lambda row: row.noop is NoOp.SWITCHED_OFF)

# What only checks; the asynchronous ones are the network's own, the others what capture notes about sizes.
ASSERTIONS = where(lambda row: row.kind is Kind.ASSERTION)
CAPTURE_NOTES = ASSERTIONS - overloads("aten._assert_async")

__all__ = [
    "AFFINE",
    "ALIASES",
    "ASSERTIONS",
    "ATTENTION",
    "BETWEEN_SCORES",
    "CAPTURE_NOTES",
    "CASTS",
    "CONVS",
    "COPIES",
    "DIVISIONS",
    "DROPOUTS",
    "FILLS",
    "LIMITS",
    "LINEAR",
    "MOVES_CODES",
    "MULTIPLICATIONS",
    "PADS",
    "PERMUTATIONS",
    "RESHAPES",
    "SCALES",
    "SOFTMAXES",
    "STRIDE_READERS",
    "TABLE",
    "TRANSPOSED_CONVS",
    "WEIGHT_LAYERS",
    "WORDED_PADDING",
    "Channels",
    "Kind",
    "Layer",
    "Layout",
    "NoOp",
    "Operator",
    "Target",
    "Trait",
    "Writes",
    "channels_of",
    "has_trait",
    "is_pure",
    "overloads",
    "read_by_value",
    "resolve",
    "row_of",
    "select",
    "spellings",
    "where",
    "why_not_stored",
]
