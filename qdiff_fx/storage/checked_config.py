"""A configuration as a file has it: every field checked, and no pattern that takes for ever to match."""

from __future__ import annotations

import re

from qdiff_fx.config import QDiffConfig
from qdiff_fx.errors import ArtifactError
from qdiff_fx.storage.fields import Fields, shown

WHERE = "config"
MOST_TIMESTEPS, MOST_BINS, MOST_RULES = (1 << 31) - 1, 1 << 16, 1 << 16
# Python's matcher tries every way: each of these multiplies them, by the length of a path or by two.
MOST_REPEATS, MOST_CHOICES = 4, 12
ESCAPED_OR_CLASS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
REPEAT = re.compile(r"[*+]|\{\d*,?\d*\}")


def config_from_json(data: object) -> QDiffConfig:
    """The configuration that `QDiffConfig.to_json` described.

    Raises:
        ArtifactError, ConfigError: a field is of another kind or out of range, or a pattern is too expensive.
    """
    fields = Fields(data, WHERE)
    fields.whole("num_train_timesteps", 1, MOST_TIMESTEPS)
    fields.whole("timestep_bins", 1, MOST_BINS)
    fields.flag("quantize_attention")
    for name in ("split", "weight_range", "weight_rounding", "act_range", "act_granularity"):
        if name in fields:
            fields.text(name)
    rules = fields.objects("rules")
    if len(rules) > MOST_RULES:
        raise ArtifactError(f"there are {len(rules)} rules, more than {MOST_RULES}", where=WHERE)
    for rule in rules:
        _check_pattern(rule)
        if rule.data.get("quantize") is not None:
            rule.flag("quantize")
    return QDiffConfig.from_json(dict(fields.data))


def _check_pattern(rule: Fields) -> None:
    pattern = rule.text("pattern")
    if pattern.startswith("re:") and not is_cheap(pattern[3:]):
        raise ArtifactError(
            f"the regular expression {shown(pattern)} may take for ever to match",
            where=rule.where,
            fix="Write it without repeats in a repeated group, or as a glob",
        )


def is_cheap(pattern: str) -> bool:
    """Whether a pattern has few ways to match a path: only few repeats and choices, and neither in a repeated group."""
    text = ESCAPED_OR_CLASS.sub("x", pattern)
    repeats = len(REPEAT.findall(text))
    choices = text.count("|") + text.count("?") - text.count("(?")
    if repeats > MOST_REPEATS or choices > MOST_CHOICES:
        return False
    several: list[bool] = []  # of each open group, whether it has more than one way to match
    for index, each in enumerate(text):
        if each == "(":
            several.append(False)
        elif each == ")" and several:
            inner = several.pop()
            if inner and REPEAT.match(text, index + 1):
                return False
            if inner and several:
                several[-1] = True
        elif several and (each in "|?" and text[index - 1] != "(" or REPEAT.match(text, index)):
            several[-1] = True
    return "(?P=" not in text
