"""One exception family: every message names the place, the cause and the way out."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with what a terminal would obey (escapes, bells, reversed writing) spelled out; line ends stay."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in text)


class QDiffError(Exception):
    """Base of every error this package raises on purpose. What it quotes may come from a file: nothing in it is obeyed.

    Args:
        what: the exact condition that failed.
        where: the node, module, argument or file it is about.
        fix: what the caller can do about it.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = ""):
        self.what, self.where, self.fix = map(printable, (what.rstrip("."), where, fix.rstrip(".")))
        text = f"{self.where}: {self.what}." if where else f"{self.what}."
        super().__init__(f"{text} {self.fix}." if fix else text)


class ConfigError(QDiffError, ValueError):
    """A configuration that can never work: unsupported bits, a rule that matches nothing."""


class InputError(QDiffError, ValueError):
    """A call whose arguments do not fit what was captured."""


class CaptureError(QDiffError):
    """A module that cannot be captured as a graph."""


class PassError(QDiffError):
    """A graph rewrite that broke a property it promised to keep."""


class CalibrationError(QDiffError):
    """Missing, malformed or insufficient calibration data."""


class ConversionError(QDiffError):
    """A prepared network that cannot be converted."""


class KernelError(QDiffError):
    """A kernel that cannot be built, or was given tensors it does not take."""


class BackendError(QDiffError):
    """An unknown backend, or one that cannot run on this machine."""


class WorkerError(QDiffError):
    """One of several processes that share a job has failed, or is gone."""


class ArtifactError(QDiffError):
    """A saved folder that is missing, damaged or from another version."""


class FixedSizeWarning(UserWarning):
    """Sizes of a network's inputs that could not be left open, and why: every call has to have those of the example."""


class ComputeError(QDiffError, RuntimeError):
    """A quantized network that failed in the middle of a call: an index outside a table, memory that is not there."""
