"""The table and the plot of benchmarks/serving.py, from the file it wrote.

python benchmarks/serving_report.py FILE.json [--into benchmarks/RESULTS.md]
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from result_tables import drawn, errors, report_command, table, with_interval

COLUMNS = (
    "contender", "tokens/s", "times padded generate", "first token, s: median", "99th percentile",
    "same texts",
)  # fmt: skip
INK = "#1f5f8b"


def markdown(content: dict[str, Any]) -> str:
    settings, machine = content["settings"], content["environment"]
    packages = machine["packages"]
    parts = [
        f"{machine['cpu']}, {machine['threads']} threads; torch {packages['torch']}, transformers "
        f"{packages['transformers']}; commit {str(machine['commit'])[:7]}. {content['model']}, "
        f"{settings['dtype']}, {settings['repeats']} rounds; 95 % intervals."
    ]
    for run in content["runs"]:
        prompts, texts = (sum(one[key] for one in run["requests"]) for key in ("prompt", "new"))
        parts.append(
            f"**{len(run['requests'])} requests** with {prompts} tokens of prompts and {texts} new "
            "ones in all:"
        )
        parts.append(table(COLUMNS, [_cells(row) for row in run["rows"]]))
    rows = content["runs"][0]["rows"]
    notes = dict.fromkeys(row["note"] for row in rows if row["note"])
    parts.append("\n".join(f"- {note}." for note in notes))
    return "\n\n".join(parts) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["contender"],
        with_interval(row["tokens_per_s"], 1),
        with_interval(row["speedup"], 2),
        f"{row['first_token_s']['p50']:.2f}",
        f"{row['first_token_s']['p99']:.2f}",
        f"{row['same_texts']:.0%}",
    ]


def draw(content: dict[str, Any], path: Path) -> None:
    """Draw tokens a second with 95 % intervals, a panel a number of requests."""
    runs = content["runs"]
    names = [row["contender"] for row in runs[0]["rows"]]
    figure = Figure(figsize=(4.6 * len(runs) + 2, 1.5 + 0.42 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(runs), squeeze=False, sharey=True)[0]
    for axes, run in zip(panels, runs, strict=True):
        rates = [row["tokens_per_s"] for row in run["rows"]]
        values = [one["estimate"] for one in rates]
        axes.barh(range(len(names)), values, xerr=errors(rates), height=0.6, color=INK, alpha=0.55)
        for place, (row, rate) in enumerate(zip(run["rows"], rates, strict=True)):
            label = f" {rate['estimate']:.0f}, {row['speedup']['estimate']:.2f}x"
            axes.text(rate["high"], place, label, va="center", fontsize=8)
        axes.set_xlim(0, 1.3 * max(one["high"] for one in rates))
        axes.set_xlabel("tokens a second, with 95 % interval")
        axes.set_title(f"{len(run['requests'])} requests", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(names)), names, fontsize=8)
    panels[0].invert_yaxis()
    machine, settings = content["environment"], content["settings"]
    figure.suptitle(
        f"Requests that arrive together, and times the speed of padded `generate`\n"
        f"{content['model']}, {settings['dtype']}; {machine['cpu']}, {machine['threads']} threads",
        fontsize=11,
    )
    figure.savefig(path, dpi=130)


write_report = partial(drawn, draw, markdown)

if __name__ == "__main__":
    report_command("serving", __doc__, write_report)
