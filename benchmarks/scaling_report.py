"""The tables and the plot of benchmarks/scaling.py, from the file it wrote.

python benchmarks/scaling_report.py FILE.json [--into benchmarks/RESULTS.md]
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from result_tables import (
    commit,
    drawn,
    errors,
    report_command,
    step_work,
    table,
    with_interval,
)

SCALES = {"context": "tokens of context", "rows": "rows of a step", "threads": "threads"}
COLUMNS = (
    "step", "ms", "times transformers", "MB", "floor, ms", "share of the floor", "same tokens",
)  # fmt: skip
INKS = ("#777777", "#1f5f8b", "#2a9d5c")


def markdown(content: dict[str, Any]) -> str:
    machine = content["environment"]
    packages, settings = machine["packages"], content["settings"]
    lines = [
        f"{machine['cpu']}, {settings['threads']} threads unless another number is given; torch "
        f"{packages['torch']}, transformers {packages['transformers']}; commit "
        f"{commit(machine)}. {settings['samples']} steps of each kind in turn; "
        f"rows and threads after {settings['at_context']} tokens; 95 % intervals."
    ]
    for model, parts in content["models"].items():
        for part, found in parts.items():
            lines.append(f"**{model}, by {SCALES[part]}**")
            rows = [[str(row[part]), *_cells(row)] for row in found["rows"]]
            lines.append(table((SCALES[part], *COLUMNS), rows))
            known = [((str(row[part]), row["step"]), row.get("work_ms")) for row in found["rows"]]
            lines += step_work("step", (SCALES[part], "step"), known)
            ran = dict.fromkeys((r["step"], r["note"]) for r in found["rows"] if r["note"])
            lines.append("\n".join(f"- {step}: {note}." for step, note in ran))
    return "\n\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["step"],
        with_interval(row["ms"], 2),
        with_interval(row["speedup"], 2),
        f"{row['step_bytes'] / 1e6:.0f}",
        f"{row['floor_ms']:.2f}",
        with_interval(row["floor_share"], 2),
        f"{row['same_tokens']:.0%}",
    ]


def draw(content: dict[str, Any], path: Path) -> None:
    """Draw milliseconds a step with 95 % intervals: a row a model, a column a scale."""
    models = {name: parts for name, parts in content["models"].items() if parts}
    columns = [part for part in SCALES if any(part in parts for parts in models.values())]
    figure = Figure(
        figsize=(4.6 * len(columns) + 0.5, 3.4 * len(models) + 0.9), layout="constrained"
    )
    grid = figure.subplots(len(models), len(columns), squeeze=False)
    for panels, (name, parts) in zip(grid, models.items(), strict=True):
        for axes, part in zip(panels, columns, strict=True):
            axes.set_visible(part in parts)
            if part in parts:
                _lines(axes, part, parts[part]["rows"])
                axes.set_title(name, fontsize=10)
        panels[0].set_ylabel("ms a step")
    machine, settings = content["environment"], content["settings"]
    figure.suptitle(
        "A decode step by context, rows and threads; 95 % intervals; dashed: the memory floor\n"
        f"{machine['cpu']}, {settings['threads']} threads where they do not vary; one row, or "
        f"{settings['at_context']} tokens of context, where those do not",
        fontsize=10,
    )
    figure.savefig(path, dpi=130)


def _lines(axes: Axes, part: str, rows: list[dict[str, Any]]) -> None:
    for ink, step in zip(INKS, dict.fromkeys(row["step"] for row in rows), strict=True):
        mine = [row for row in rows if row["step"] == step]
        places = [row[part] for row in mine]
        times = [row["ms"] for row in mine]
        values = [time["estimate"] for time in times]
        axes.errorbar(
            places, values, yerr=errors(times), color=ink, marker="o", markersize=4, capsize=2
        )
        floors = [row["floor_ms"] for row in mine]
        axes.plot(places, floors, color=ink, linestyle="--", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sorted({row[part] for row in rows}))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=8)
    axes.set_xlabel(SCALES[part])
    axes.margins(x=0.08)
    left, right = axes.get_xlim()
    axes.set_xlim(left, right * (right / left) ** 0.45)  # room for the labels
    axes.spines[["top", "right"]].set_visible(False)
    _label(axes, rows, right)


def _label(axes: Axes, rows: list[dict[str, Any]], place: float) -> None:
    """Name the lines at their ends, bottom up, no name over another."""
    ends = {row["step"]: row["ms"]["estimate"] for row in rows}  # the last of each
    bottom, top = axes.get_ylim()
    gap = (top / bottom) ** 0.06
    height = bottom
    for step in sorted(ends, key=ends.__getitem__):
        height = max(height, ends[step])
        ink = INKS[list(ends).index(step)]
        axes.text(place, height, step, color=ink, fontsize=8, va="center")
        height *= gap


write_report = partial(drawn, draw, markdown)

if __name__ == "__main__":
    report_command("scaling", __doc__, write_report)
