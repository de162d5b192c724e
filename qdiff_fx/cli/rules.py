"""``--rule PATTERN=WHAT``: exceptions for single layers, as text."""

from __future__ import annotations

from qdiff_fx.config import Rule, bits_of
from qdiff_fx.errors import ConfigError

FLOAT = "float"


def parse_rule(text: str) -> Rule:
    """``conv_in=float``, ``up_blocks.*=w8``, ``mid_block.*=w8a8s16`` → the `Rule` it stands for.

    Raises:
        ConfigError: it has another form, or names bits that are not supported.
    """
    # A regular expression may contain "=", what follows it cannot.
    pattern, separator, what = text.rpartition("=")
    bits = bits_of(what)
    if not separator or not pattern or not what or (what != FLOAT and bits is None):
        raise ConfigError(
            "a rule has the form PATTERN=float or PATTERN=w4a8s16 (each of w, a and s may be left out)",
            where=f"--rule {text!r}",
        )
    if bits is None or what == FLOAT:
        return Rule(pattern, quantize=False)
    # Bits for what an earlier rule keeps in float can only mean to quantize it after all.
    return Rule(pattern, **bits, quantize=True)
