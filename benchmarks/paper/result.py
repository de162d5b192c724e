"""What an experiment returns: rows for a table, and a drawing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Draw = Callable[[Figure], None]


@dataclass(frozen=True)
class Result:
    """Rows that share their keys, and what draws them; `draw` is None where the table says it all."""

    title: str
    rows: list[dict[str, Any]]
    draw: Draw | None = None

    def save(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        """Write NAME.json, NAME.md and, if there is a drawing, NAME.png."""
        folder.mkdir(parents=True, exist_ok=True)
        figures = {"title": self.title, "settings": dict(settings), "rows": self.rows}
        (folder / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")
        (folder / f"{name}.md").write_text(f"{self.markdown()}\n")
        if self.draw is not None:
            figure = Figure(figsize=(7, 3.2), layout="constrained")
            FigureCanvasAgg(figure)
            self.draw(figure)
            figure.savefig(folder / f"{name}.png", dpi=80)

    def markdown(self) -> str:
        """The rows as a table."""
        names = list(self.rows[0])
        lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
        lines += [f"| {' | '.join(_cell(row[name]) for name in names)} |" for row in self.rows]
        return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1 else f"{value:.1f}"
    return str(value)


def lines(figure: Figure, x: list[float], series: Mapping[str, list[float]], xlabel: str, ylabel: str) -> Axes:
    """One line per series over the same x."""
    axes = figure.add_subplot()
    for name, values in series.items():
        axes.plot(x, values, label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return axes
