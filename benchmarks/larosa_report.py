"""Tables and curves of benchmarks/larosa.py, from the larosa.json it wrote.

python benchmarks/larosa_report.py FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from trimtab.evaluation.intervals import ratio

OURS = "ours"  # what the others are set against, window by window

Row = dict[str, Any]


def table(rows: list[Row], cell: Callable[[Row], str]) -> str:
    """Return a Markdown table of one text and axis, a method a row."""
    points = sorted({row["asked"] for row in rows})
    by_bytes = rows[0]["axis"] == "bytes"
    heads = [f"{1 - p:.2f} of the bytes" if by_bytes else f"{p:.2f} dropped" for p in points]
    lines = ["| method | " + " | ".join(heads) + " |", "|---" * (len(points) + 1) + "|"]
    for name in dict.fromkeys(row["method"] for row in rows):
        found = {row["asked"]: cell(row) for row in rows if row["method"] == name}
        lines.append(f"| {name} | " + " | ".join(found.get(p, "-") for p in points) + " |")
    return "\n".join(lines)


def over_dense(row: Row) -> str:
    """Return a row's perplexity over dense, and the share of bytes it read."""
    return f"{_interval(row['perplexity_ratio'])} at {row['bytes_fraction']:.3f}"


def over_ours(rows: list[Row]) -> str:
    """Return a Markdown table of one text and axis: its bits over those by `OURS`, as asked."""
    ours = {row["asked"]: row["nats"] for row in rows if row["method"] == OURS}
    others = [row for row in rows if row["method"] != OURS and row["asked"] in ours]

    def cell(row: Row) -> str:
        return _interval(ratio(row["nats"], ours[row["asked"]], paired=True, seed=0))

    return table(others, cell) if others else ""


def _interval(found: dict[str, float]) -> str:
    return f"{found['estimate']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def curves(rows: list[Row], path: Path) -> None:
    """Draw excess perplexity against bytes read, as measured, with 95 % intervals."""
    texts = list(dict.fromkeys(row["text"] for row in rows))
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, len(texts), sharey=True, squeeze=False)[0]
    for axes, text in zip(panels, texts, strict=True):
        for name in dict.fromkeys(row["method"] for row in rows):
            mine = [row for row in rows if (row["text"], row["method"]) == (text, name)]
            mine.sort(key=lambda row: row["bytes_fraction"])
            ratios = [row["perplexity_ratio"] for row in mine]
            excess = [one["estimate"] - 1 for one in ratios]
            errors = [
                [one["estimate"] - one["low"] for one in ratios],
                [one["high"] - one["estimate"] for one in ratios],
            ]
            axes.errorbar(
                [row["bytes_fraction"] for row in mine], excess, yerr=errors, marker="o",
                markersize=4, capsize=2, label=name, linewidth=2.5 if name == "ours" else 1,
            )  # fmt: skip
        axes.set_yscale("symlog", linthresh=0.01)
        axes.set_title(text)
        axes.set_xlabel("block weight bytes read per token, over dense")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("excess perplexity over dense")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=130)


def write_report(folder: Path) -> str:
    """Write larosa.md and larosa.png beside larosa.json, and return the Markdown.

    There is no plot without a budget.
    """
    rows = json.loads((folder / "larosa.json").read_text("utf-8"))["rows"]
    parts = []
    for axis, title in (("bytes", "equal bytes read"), ("nominal", "equal nominal sparsity")):
        for text in dict.fromkeys(row["text"] for row in rows if row["axis"] == axis):
            own = [row for row in rows if (row["text"], row["axis"]) == (text, axis)]
            parts.append(f"{text}, {title}: perplexity over dense, at the share of bytes measured")
            parts.append(table(own, over_dense))
            if paired := over_ours(own):
                parts.append(f"{text}, {title}: bits of the text over `{OURS}`, window by window")
                parts.append(paired)
    report = "\n\n".join(parts) + "\n"
    (folder / "larosa.md").write_text(report, "utf-8")
    if by_bytes := [row for row in rows if row["axis"] == "bytes"]:
        curves(by_bytes, folder / "larosa.png")
    return report


if __name__ == "__main__":
    print(write_report(Path(sys.argv[1])))
