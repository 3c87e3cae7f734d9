"""Plots that the benchmarks' reports share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from result_tables import Estimate, errors

INK = "#1f5f8b"


@dataclass(frozen=True)
class Bar:
    """A bar with its interval, and what is written at its end."""

    name: str
    value: Estimate
    label: str


def contender_bars(rows: Iterable[dict[str, Any]], field: str) -> list[Bar]:
    """Return a bar a contender: one of its figures, labelled with that and its speedup."""
    return [
        Bar(
            row["contender"],
            row[field],
            f"{row[field]['estimate']:.0f}, {row['speedup']['estimate']:.2f}x",
        )
        for row in rows
    ]


def draw_bars(panels: Mapping[str, Sequence[Bar]], unit: str, title: str, path: Path) -> None:
    """Draw bars that lie, panels by their titles side by side; all have the same names."""
    names = [bar.name for bar in next(iter(panels.values()))]
    figure = Figure(figsize=(4.6 * len(panels) + 2, 1.5 + 0.42 * len(names)), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (heading, bars) in zip(grid, panels.items(), strict=True):
        values = [bar.value for bar in bars]
        lengths = [one["estimate"] for one in values]
        axes.barh(range(len(bars)), lengths, xerr=errors(values), height=0.6, color=INK, alpha=0.55)
        for place, bar in enumerate(bars):
            axes.text(bar.value["high"], place, f" {bar.label}", va="center", fontsize=8)
        axes.set_xlim(0, 1.3 * max(one["high"] for one in values))
        axes.set_xlabel(f"{unit}, with 95 % interval")
        axes.set_title(heading, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].set_yticks(range(len(names)), names, fontsize=8)
    grid[0].invert_yaxis()
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=130)
