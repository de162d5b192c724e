"""What must hold of every network: it is quantized, its backends agree, it is saved and loaded, its calls are free."""

from __future__ import annotations

import copy
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch
from torch import Tensor

from qdiff_fx import QDiffConfig, QDiffError, calibrate, convert_qdiff, load_qdiff, prepare_qdiff, save_qdiff
from tests.fuzz.flips import where_it_is_no_rounding
from tests.fuzz.network import build, call
from tests.fuzz.program import Program

BATCHES = 3

# In dB. Random networks, calibrated on three batches: of a thousand none that was right had less.
FAITHFUL = 6.0
# Native's error against float exceeds that of reference by chance only; on the few numbers here by so much at most:
# of 6000 networks one had 4.2, behind norms over four numbers.
AS_FAITHFUL = 5.0
# Two backends are in the end two roundings of one value, each with the error of reference: their difference has at most
# twice its energy, 3 dB, and 1 for chance. docs/kernels.md, "Native and reference".
INDEPENDENT = 4.0
# Other calls have timesteps and numbers that nobody calibrated with. Where reference is less faithful in them, native
# may be farther from it too, by so much at most.
UNCALIBRATED = 6.0
# Nearer than that, and all is said. Else it is looked up whether it began with a few codes that flipped.
FEW_FLIPS = 6.0
NOTHING = 1e-4  # a network whose results are as small as that has no signal to compare


class Invalid(Exception):
    """The float network itself does not run, or has no finite result."""


@dataclass(frozen=True)
class Finding:
    """What is wrong with one program.

    Attributes:
        kind: "crash", "unfaithful", "disagree", "reuse", "saved", "mixed", "type", "refused".
        what: one line.
        at: what was being done.
    """

    kind: str
    what: str
    at: str

    def __str__(self) -> str:
        return f"{self.kind} ({self.at}): {self.what}"


@dataclass
class Trial:
    """What came of one program.

    Attributes:
        finding: what is wrong, the first of it; None where all holds.
        refused: the last sentence with which the network, or a call of it, was refused.
        seconds: of processor time, by what they were spent on.
        db: measured ratios of signal to noise.
        error: what was raised where it was no refusal.
    """

    finding: Finding | None = None
    refused: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    db: dict[str, float] = field(default_factory=dict)
    error: BaseException | None = None

    _started: float = 0.0

    @property
    def step(self) -> str:
        """What is being done."""
        return next(reversed(self.seconds), "")

    def begin(self, step: str) -> None:
        now = time.process_time()
        if self.seconds:
            self.seconds[self.step] += now - self._started
        self.seconds.setdefault(step, 0.0)
        self._started = now

    def fail(self, kind: str, what: str, error: BaseException | None = None) -> None:
        if self.finding is None:
            self.finding, self.error = Finding(kind, what, self.step), error


def attempt(program: Program) -> Trial:
    """Try one program. Raises Invalid where its float network does not run."""
    trial = Trial()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _Job(program, trial).run()
    except Invalid:
        raise
    except QDiffError as error:
        trial.refused = f"{type(error).__name__}: {error}"
        # A pass wraps what went wrong inside it: that is no refusal.
        if error.__cause__ is not None and not isinstance(error.__cause__, QDiffError):
            trial.fail("crash", trial.refused[:300], error)
    except Exception as error:
        trial.fail("crash", f"{type(error).__name__}: {str(error).partition(chr(10))[0][:250]}", error)
    return trial


class _Job:
    def __init__(self, program: Program, trial: Trial):
        self.program, self.trial = program, trial

    def run(self) -> None:
        program, trial = self.program, self.trial
        self.build()
        trial.begin("prepare")
        prepared = prepare_qdiff(self.network, config_of(program), call(program, 2))
        trial.begin("calibrate")
        batches = [call(program, 2) for _ in range(BATCHES)]
        calibrate(prepared, batches, progress=False)
        trial.begin("convert")
        self.reference = convert_qdiff(prepared, "reference")
        self.native = self.reference.with_backend("native")
        self.plain = self.reference.with_backend("native", compute_dtype=torch.float32, reuse=False)
        trial.begin("run")
        self.compare_with_float(batches[0])
        self.compare_backends(batches[0], "calibrated")
        for name, batch in self.calls().items():
            trial.begin(f"run {name}")
            self.other_call(batch, name)
        self.optional_calls(batches[0])
        if program.timestep != "none":
            trial.begin("mixed")
            self.mixed(call(program, 3, mixed=True))
        trial.begin("save")
        try:
            self.saved(batches[0])
        except QDiffError as error:  # what runs can be kept
            trial.fail("saved", str(error), error)
        trial.begin("end")

    def build(self) -> None:
        self.trial.begin("build")
        self.network = build(self.program)
        self.exact = copy.deepcopy(self.network).float()
        batch = call(self.program, 2)
        try:
            found = [*self.in_float(batch), *flat(self.exact(**widened(batch)))]
        except Exception as error:
            raise Invalid(str(error)) from error
        if not all(each.isfinite().all() and each.abs().max() > NOTHING for each in found):
            raise Invalid("its result is not finite, or nothing")

    def in_float(self, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """The results of the network itself, which may write into what it is given."""
        return flat(self.network(**copy.deepcopy(dict(batch))))

    def calls(self) -> dict[str, dict[str, Tensor]]:
        """Other batches, sizes and lengths than it was captured with."""
        found = {"one": call(self.program, 1), "three": call(self.program, 3), "large": call(self.program, 2, scale=2)}
        if self.program.condition == "tokens":
            found["long"] = call(self.program, 2, tokens=9)
        return found

    def other_call(self, batch: dict[str, Tensor], name: str) -> None:
        """A call that the network takes may be refused, with a sentence."""
        try:
            self.in_float(batch)
        except Exception:
            return
        try:
            self.compare_backends(batch, name)
        except QDiffError as error:
            self.trial.refused = f"{name}: {error}"

    def optional_calls(self, batch: dict[str, Any]) -> None:
        """A call with and without an optional argument, the others as they were calibrated with."""
        program, trial = self.program, self.trial
        if program.given == "always" or "none" in (program.timestep, program.condition):
            return
        given = call(program, 2, condition=True) | batch
        bare = {name: each for name, each in given.items() if name != program.condition}
        captured = program.given == "captured"
        trial.begin("run optional")
        self.optional_call("given", given, bare, captured)
        self.optional_call("left out", bare, given, not captured)
        self.optional_call("None", {**bare, program.condition: None}, given, not captured)

    def optional_call(self, name: str, batch: dict[str, Any], other: dict[str, Any], like_captured: bool) -> None:
        """A call is computed as by the network, not as the `other`, or refused where it is unlike what was captured."""
        want, ignored = (flat(self.exact(**widened(each))) for each in (batch, other))
        for kind, network in (("reference", self.reference), ("native", self.native)):
            try:
                got = flat(network(**batch))
            except QDiffError as error:
                self.trial.refused = f"{name}: {error}"
                if like_captured:
                    self.trial.fail("refused", f"{name}: {error}", error)
                continue
            db = self.trial.db[f"{kind} {name}"] = least(want, got)
            confused = least(want, ignored) < self.trial.db["faithful"] and db < least(ignored, got)
            if db < min(FAITHFUL, self.trial.db["faithful"]) or confused:
                self.trial.fail("unfaithful", f"{kind}, {name}, has {db:.1f} dB against float")

    def compare_with_float(self, batch: dict[str, Tensor]) -> None:
        want, db = flat(self.exact(**widened(batch))), self.trial.db
        db["faithful"] = least(want, flat(self.reference(**batch)))
        db["native faithful"] = least(want, flat(self.native(**batch)))
        if db["faithful"] < FAITHFUL:
            self.trial.fail("unfaithful", f"reference has {db['faithful']:.1f} dB against float")
        if db["native faithful"] < db["faithful"] - AS_FAITHFUL:
            self.trial.fail("disagree", f"native has {db['native faithful']:.1f} dB against float, {db}")

    def compare_backends(self, batch: dict[str, Tensor], name: str) -> None:
        theirs, want = self.in_float(batch), flat(self.reference(**batch))
        self.check_types(want, theirs, "reference")
        faithful = self.trial.db["faithful"]
        in_this_call = least(flat(self.exact(**widened(batch))), want)
        bar = min(faithful, max(in_this_call, faithful - UNCALIBRATED)) - INDEPENDENT
        for kind, network in (("native", self.native), ("plain", self.plain)):
            ours = flat(network(**batch))
            self.check_types(ours, theirs, kind)
            found = self.trial.db[f"{kind} {name}"] = least(want, ours)
            if not found >= bar:
                self.trial.fail("disagree", f"{kind} has {found:.1f} dB against reference, less than {bar:.1f}")
            elif kind == "plain" and not found >= faithful + FEW_FLIPS:
                reason = where_it_is_no_rounding(self.reference, self.plain, batch)
                self.trial.db["flips looked up"] = found
                if reason:
                    self.trial.fail("disagree", reason)
            if not all(map(torch.equal, ours, flat(network(**batch)))):
                self.trial.fail("reuse", f"the second call of {kind} has another result")

    def check_types(self, ours: list[Tensor], theirs: list[Tensor], name: str) -> None:
        for a, b in zip(ours, theirs, strict=True):
            if a.dtype != b.dtype or a.shape != b.shape:
                self.trial.fail("type", f"{name} returns {a.dtype} {tuple(a.shape)}, not {b.dtype} {tuple(b.shape)}")

    def mixed(self, batch: dict[str, Tensor]) -> None:
        """A batch of several timesteps equals its samples alone, where the network's samples do not read each other."""
        rows = [{name: rowed(each, row) for name, each in batch.items()} for row in range(3)]
        theirs = self.in_float(batch)
        alone = [self.in_float(row) for row in rows]
        apart = all(close(f, rowed(g, row)) for row in range(3) for f, g in zip(alone[row], theirs, strict=True))
        for name, network in (("reference", self.reference), ("native", self.native)):
            try:
                whole = flat(network(**batch))
            except QDiffError as error:
                self.trial.refused = f"mixed: {error}"
                continue
            self.check_types(whole, theirs, name)
            if apart and not self.trial.finding:
                ratios = [least(flat(network(**rows[row])), [rowed(each, row) for each in whole]) for row in range(3)]
                self.trial.db[f"mixed {name}"] = min(ratios)
                if not min(ratios) >= self.trial.db["faithful"] - INDEPENDENT:
                    self.trial.fail("mixed", f"{name} has {min(ratios):.1f} dB against its samples alone")

    def saved(self, batch: dict[str, Tensor]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            save_qdiff(self.reference, f"{folder}/network")
            for name, network in (("reference", self.reference), ("native", self.native)):
                self.trial.begin(f"load {name}")
                loaded = load_qdiff(f"{folder}/network", name)
                if not all(map(torch.equal, flat(loaded(**batch)), flat(network(**batch)))):
                    self.trial.fail("saved", f"{name} computes something else once it is loaded")


def config_of(program: Program) -> QDiffConfig:
    return QDiffConfig(
        weight_bits=program.weight_bits,
        act_bits=program.act_bits,
        softmax_bits=program.softmax_bits,
        act_granularity=program.granularity,
    )


def rowed(tensor: Tensor, row: int) -> Tensor:
    """One sample of what three samples have."""
    return tensor[row : row + 1] if tensor.dim() and tensor.shape[0] == 3 else tensor


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-2, atol=1e-3)


def flat(result: Any) -> list[Tensor]:
    """The tensors in a network's result, in order."""
    if isinstance(result, Tensor):
        return [result]
    parts = result.values() if isinstance(result, Mapping) else result
    return [each for part in parts for each in flat(part)]


def widened(batch: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
    """The same call in float32."""
    return {name: each.float() if _is_real(each) else each for name, each in batch.items()}


def _is_real(each: Tensor | None) -> TypeGuard[Tensor]:
    return each is not None and each.is_floating_point()


def least(want: list[Tensor], got: list[Tensor]) -> float:
    """The lowest ratio of signal to noise among several results."""
    return min(ratio(a, b) for a, b in zip(want, got, strict=True))


def ratio(want: Tensor, got: Tensor) -> float:
    """Signal to noise in dB: 200 where they are equal, -200 where there is something other than numbers."""
    want, got = want.double(), got.double()
    if torch.equal(want, got):
        return 200.0
    noise, signal = (want - got).square().sum(), want.square().sum()
    return float(10 * torch.log10(signal / noise)) if signal > 0 and noise.isfinite() else -200.0
