"""What a job will take, and what it took, as tables and figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from qdiff_fx.report.amounts import duration, gigabytes
from qdiff_fx.workflow.estimate import Estimate
from qdiff_fx.workflow.job import Job
from qdiff_fx.workflow.overall import Taken


def scope_line(estimate: Estimate, job: Job) -> str:
    """How much data there is."""
    return f"{job.request.count} trajectories of {job.request.steps} steps, {estimate.rows} rows to calibrate on"


def estimate_table(estimate: Estimate) -> Table:
    """The phases to come."""
    table = Table(title="what it will take")
    for column in ("phase", "time", "peak memory"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    for phase in estimate.phases:
        table.add_row(phase.name, duration(phase.seconds), gigabytes(phase.peak_bytes))
    table.add_row("all of them", duration(estimate.seconds), gigabytes(estimate.peak_bytes), style="bold")
    return table


def taken_table(estimate: Estimate, taken: Mapping[str, Taken]) -> Table:
    """The same phases behind us; those that an earlier run finished took nothing."""
    table = Table(title="what it took")
    for column in ("phase", "estimated", "took", "peak memory, estimated", "peak memory"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    for phase in estimate.phases:
        found = taken.get(phase.name, Taken(0.0, 0))
        table.add_row(
            phase.name,
            duration(phase.seconds),
            duration(found.seconds),
            gigabytes(phase.peak_bytes),
            gigabytes(found.peak_bytes),
        )
    table.add_row("all of them", duration(estimate.seconds), duration(_seconds(estimate, taken)), "", "", style="bold")
    return table


def estimate_figures(estimate: Estimate, job: Job, taken: Mapping[str, Taken] | None = None) -> dict[str, Any]:
    """For ``--json``; with what it took, where that is known, and the phases nobody estimated."""
    phases: dict[str, dict[str, Any]] = {
        phase.name: {"estimated_seconds": phase.seconds, "estimated_peak_bytes": phase.peak_bytes}
        for phase in estimate.phases
    }
    for name, found in (taken or {}).items():
        phases.setdefault(name, {}).update(seconds=found.seconds, peak_bytes=found.peak_bytes)
    figures: dict[str, Any] = {
        "samples": job.request.count,
        "steps": job.request.steps,
        "rows": estimate.rows,
        "estimated_seconds": estimate.seconds,
        "phases": phases,
    }
    if taken:
        figures["seconds"] = _seconds(estimate, taken)
    return figures


def _seconds(estimate: Estimate, taken: Mapping[str, Taken]) -> float:
    return sum(taken[phase.name].seconds for phase in estimate.phases if phase.name in taken)
