"""Scales, zero-points and layers as a file has them: bits that exist, numbers that are some."""

from __future__ import annotations

from dataclasses import replace

from qdiff_fx.errors import ArtifactError
from qdiff_fx.quant.numerics import integer_range
from qdiff_fx.quant.qparams import ACTIVATION_BITS, SIXTEEN_BITS, SOFTMAX_BITS, WEIGHT_BITS, LayerInfo, QParams
from qdiff_fx.storage.fields import Fields, is_number, is_whole, shown

KINDS = ("conv", "conv_transpose", "linear", "attention")
MOST_ROWS = 1 << 16
LARGEST_SCALE = 3.4028234e38  # of float32


def qparams_from_json(fields: Fields) -> QParams:
    """The parameters that `QParams.to_json` described. Raises ArtifactError."""
    bits, signed = fields.whole("bits", 2, 16), fields.flag("signed")
    fields.flag("symmetric")
    scales, zero_points = fields.items("scale"), fields.items("zero_point")
    if not 1 <= len(scales) <= MOST_ROWS or len(scales) != len(zero_points):
        raise ArtifactError(f"{len(scales)} scales do not go with {len(zero_points)} zero-points", where=fields.where)
    low, high = integer_range(bits, signed=signed)
    for scale, zero_point in zip(scales, zero_points, strict=True):
        check_scale(scale, fields.where)
        if not is_whole(zero_point, low, high):
            raise ArtifactError(f"a zero-point is {shown(zero_point)}, not one of {bits} bits", where=fields.where)
    return QParams.from_json(dict(fields.data))


def check_scale(scale: object, where: str) -> None:
    """Raises ArtifactError for a scale that no quantizer can have."""
    if not is_number(scale) or not 0 < scale <= LARGEST_SCALE:  # type: ignore[operator]  # it is a number
        raise ArtifactError(f"a scale is {shown(scale)}, not a positive number of float32", where=where)


def layer_from_json(fields: Fields) -> LayerInfo:
    """The row that `LayerInfo.to_json` described. Raises ArtifactError."""
    fields.text("path")
    fields.text("float_reason")
    fields.choice("kind", KINDS)
    _check_bits(fields, "weight_bits", (0, *WEIGHT_BITS))
    _check_bits(fields, "act_bits", (0, *ACTIVATION_BITS, SIXTEEN_BITS))
    _check_bits(fields, "softmax_bits", (0, *SOFTMAX_BITS))
    unknown = set(fields.data) - set(LayerInfo.__dataclass_fields__)
    if unknown:
        raise ArtifactError(f"a layer has no {shown(min(unknown))}", where=fields.where)
    made = LayerInfo.from_json({**fields.data, "output": None})
    return made if fields.get("output") is None else replace(made, output=qparams_from_json(fields.object("output")))


def _check_bits(fields: Fields, name: str, allowed: tuple[int, ...]) -> None:
    if fields.whole(name, 0, SIXTEEN_BITS) not in allowed:
        raise ArtifactError(f"{name} is {fields.data[name]}, not one of {list(allowed)}", where=fields.where)
